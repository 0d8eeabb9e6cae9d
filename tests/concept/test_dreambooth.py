"""DreamBooth against diffusers: one step of its training script, with and without the prior."""
import math
from itertools import count

import comfy.utils
import folder_paths
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.editing.concepts import ConceptImages, Prior
from palimpsest.editing.learner import Learner
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.host.concept_files import vectors_of
from palimpsest.host.progress import Cancelled
from palimpsest.nodes.concept import dreambooth
from palimpsest.nodes.concept.dreambooth import PalimpsestLearnSubject, class_templates, new_word
from palimpsest.nodes.concept.images import PalimpsestClassImages
from palimpsest.nodes.concept.words import PalimpsestLoadConcept

import clips
import tiny
from concepts import diffusers_step, drawn, images, transformers_clip
from node_execution import executor, in_lists  # noqa: F401  runs every test as the host does
from runs import relative

RATE, BATCH, SEED = 1e-3, 3, 5
CAPTIONS = "a photo of * star", "a * star at night"


@pytest.mark.parametrize("weight", [None, 0.7], ids=["alone", "prior"])
def test_a_step_equals_diffusers(weight):
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTIONS)
    prior = images(model, ("a photo of a star", "a star"), seed=8) if weight else None
    learned = learn_concept(model, clip, given, [AllWeights(RATE)], Prior(prior, weight) if weight else None, steps=1,
                            batch=BATCH, seed=SEED)
    loss, gradients = diffusers_step(model, clip, given, prior, weight, BATCH, SEED)
    assert learned.losses[0] == pytest.approx(loss, rel=1e-6)
    # AdamW's first mean is a tenth of the gradient
    means = [10 * state["exp_avg"] for state in learned.state["optimiser"]["state"].values()]
    found = dict(zip(learned.weights, means, strict=True))
    pairs = []
    for theirs in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config):
        stem, _, end = theirs.rpartition(".")
        if theirs in gradients and end in ("weight", "bias"):
            name = f"lora_unet_{stem.replace('.', '_')}.{'diff' if end == 'weight' else 'diff_b'}"
            pairs.append((found.pop(name), gradients[theirs]))
    assert not found and len(pairs) > 100
    # fp32's own: 1.2e-6 from the same gradients in fp64
    assert relative(*(torch.cat([g.flatten() for g in side]) for side in zip(*pairs))) < 2e-6
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-5


def test_the_text_encoder_learns_as_transformers_does():
    """The gradients of its weights, through transformers' text encoder and diffusers' network."""
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, ("a photo of a * dog",))
    basis = AllWeights(RATE, text_encoder=True)
    learned = learn_concept(model, clip, given, [basis], steps=1, seed=SEED, norm=math.inf)
    (_, level, noise), = drawn(model, 1, 1, torch.Generator().manual_seed(SEED))
    with torch.inference_mode(False):
        encoder = transformers_clip(clip)
        ids = torch.tensor([[token for token, _ in clip.tokenize("a photo of a sks dog")["l"][0]]])
        clean = model.model.process_latent_in(given.examples[0].latent.clone())[None]
        sigma = model.model.model_sampling.sigmas[level].clone()
        noisy = (clean + sigma * noise.clone()) / (1 + sigma ** 2) ** 0.5
        loss = (twin.unet(model)(noisy, level, encoder(ids).last_hidden_state).sample - noise).square().mean()
        loss.backward()
    means = [10 * state["exp_avg"] for state in learned.state["optimiser"]["state"].values()]
    found, pairs = dict(zip(learned.weights, means, strict=True)), []
    for name, weight in encoder.named_parameters():
        stem, _, end = name.removeprefix("text_model.").rpartition(".")
        key = f"lora_te_text_model_{stem.replace('.', '_')}.{'diff' if end == 'weight' else 'diff_b'}"
        if key in found:
            pairs.append((found[key].flatten(), weight.grad.flatten()))
    assert len(pairs) == sum(name.startswith("lora_te_") for name in found) > 10
    assert learned.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert relative(*(torch.cat(side) for side in zip(*pairs))) < 1e-5


class Pixels:
    """A VAE whose latents are the pictures' pixels, 8 times as small."""

    def encode(self, pictures):
        return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), 8)[:, [0, 1, 2, 0]]

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1).sigmoid()

    def spacial_compression_encode(self):
        return 8


@pytest.mark.parametrize("of_subject, of_class", [
    ((1.0, 0.8, 0.9, 0.795, 0.9), (1.0, 1.0, 1.0, 1.0, 1.0)), ((1.0, 0.8, 0.7, 0.6, 0.5), (1.0, 1.05, 1.2, 1.2, 1.2))],
    ids=["nothing more is won", "the class drifts"])
def test_a_subject_is_learned_by_one_node_which_stops_and_keeps_the_best(of_subject, of_class, monkeypatch):
    """A look at each step finds these losses."""
    model, clip, pictures = tiny.sd15(), tiny.clip(), torch.rand(2, 64, 64, 3, generator=torch.Generator())
    asked = []

    def picture(self, *told):
        asked.append(told)
        return torch.full((1, 4, 8, 8), float(len(asked)))

    def learned(steps):
        left = {True: iter(of_subject), False: iter(of_class)}
        monkeypatch.setattr(Learner, "loss_of", lambda self, shown, count: next(left[shown is self.images]))
        monkeypatch.setattr(Learner, "picture", picture)
        return in_lists(
            PalimpsestLearnSubject, model, clip, Pixels(), pictures, "star", "sks", steps, 1e-2, 4, 1, 2, 1.0, 0.1, 0,
            "a * star on grass\na * star at night", "a * star on sand").result

    m, c, concept, looks = learned(10)
    assert (concept.notes["kept"], concept.notes["steps"]) == (1, 4)
    assert len(looks) == 2 and looks.shape[1:] == (64, 64, 3) and not torch.equal(*looks)
    assert asked == 5 * [("a * star on sand", 15, 1.0)]
    assert concept.notes["captions"] == ["a * star on grass", "a * star at night"]
    best = learned(1)[2]
    assert {name.split("_")[1] for name in best.weights} == {"unet", "te"}
    assert all(torch.equal(concept.weights[name], value) for name, value in best.weights.items())
    assert m.patches and c.patcher.patches and not model.patches


def test_a_subject_may_be_called_by_a_new_word_which_is_learned_with_the_weights(monkeypatch):
    falling = count(1.0, -0.1)
    monkeypatch.setattr(Learner, "loss_of", lambda *told: next(falling))  # the first update is kept
    model, clip, pictures = tiny.sd15(), tiny.clip(), torch.rand(2, 64, 64, 3, generator=torch.Generator())
    asked = dict(noun="wolfhound", identifier="embedding:mine", steps=1, lr=1e-2, rank=4, batch=1, class_count=2,
                 cfg=1.0, drift=0.1, seed=0)
    _, knows, concept, _ = in_lists(PalimpsestLearnSubject, model, clip, Pixels(), pictures, **asked).result
    start = vectors_of(clip, "wolfhound")["clip_l"]
    word = concept.words["mine"]["clip_l"]
    assert len(start) == 2 and word.shape == start.shape
    # AdamW's first update is as large as its rate
    assert float((word - start).abs().max()) == pytest.approx(5 * 1e-2, rel=0.1)
    assert {name.split("_")[1] for name in concept.weights} == {"unet", "te"}
    token, *_ = knows.tokenize("embedding:mine")["l"][0][1]
    assert torch.equal(token, word[0])


def test_a_new_word_fits_encoders_that_split_its_noun_differently(monkeypatch):
    lengths = {"clip_l": 2, "t5xxl": 3}
    monkeypatch.setattr(dreambooth, "vectors_of", lambda clip, noun: {n: [0] * k for n, k in lengths.items()})
    (word,) = new_word(None, "embedding:mine", "wolfhound", 1e-3)
    assert word.vectors == 6


@pytest.mark.parametrize("updates", [1, 3])
def test_a_cancel_keeps_what_was_learned_from_the_first_look_on(updates, tmp_path, monkeypatch):
    """The first of twenty updates' looks is after two."""
    step, taken = Learner.step, []

    def stop(self):
        if len(taken) == updates:
            raise Cancelled
        taken.append(1)
        return step(self)

    monkeypatch.setattr(Learner, "step", stop)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip, pictures = tiny.sd15(), tiny.clip(), torch.rand(2, 64, 64, 3, generator=torch.Generator())
    with pytest.raises(Cancelled):
        in_lists(PalimpsestLearnSubject, model, clip, Pixels(), pictures, "star", "embedding:mine", 20, 1e-2, 4, 1, 2,
                                       1.0, 0.1, 0)
    saved = list((tmp_path / "concepts").glob("*"))
    assert len(saved) == (updates == 3)
    for path in saved:
        concept = PalimpsestLoadConcept.execute(f"concepts/{path.name} [output]").result[0]
        m, knows = applied(model, clip, concept)
        assert len(concept.losses) == 3 and m.patches and concept.words.keys() == {"mine"}


class Frames(Pixels):
    """A VAE of videos, as Qwen-Image's: a picture is a video of one frame."""

    def encode(self, pictures):
        return super().encode(pictures).repeat(1, 4, 1, 1)[:, :, None]

    def decode(self, latents):
        return super().decode(latents[:, :, 0])[:, None]


def test_pictures_of_a_vae_of_videos_are_pictures():
    model, clip, pictures = tiny.qwen(), clips.clip("qwen"), torch.rand(2, 64, 64, 3, generator=torch.Generator())
    asked = dict(noun="star", identifier="sks", steps=1, lr=1e-2, rank=4, batch=1, class_count=2, cfg=1.0, drift=0.1,
                 seed=0)
    learned = in_lists(PalimpsestLearnSubject, model, clip, Frames(), pictures, **asked)
    looks = learned.result[3]
    assert looks.shape[1:] == (64, 64, 3) and len(learned.ui["images"]) == len(looks)
    examples, made = PalimpsestClassImages.execute(
        model, clip, Frames(), "star", "a *", 2, 64, 64, 1, 1.0, "euler", "simple", 0).result
    assert made.shape == (2, 64, 64, 3) and examples.examples[0].latent.shape == (16, 1, 8, 8)


@pytest.mark.parametrize("caption, wanted", [
    ("a * star on grass", "a star on grass"), ("a * bright Star", "a bright star"), ("* star and starfish", "star and "
     "starfish"), ("a starfish and a * star", "a starfish and a star"), ("a *star", "a star")])
def test_the_class_is_drawn_under_the_captions_of_the_subject(caption, wanted):
    said = class_templates([caption, "a photo of a * star", caption], "star").splitlines()
    assert [text.replace("*", "star") for text in said] == [wanted, "a photo of a star"]
    assert all(text.count("*") == 1 for text in said)


def test_the_class_is_drawn_at_several_places_where_no_caption_says_one():
    said = class_templates([], "star")
    assert said.splitlines()[0] == "a photo of a *" and said.count("*") > 3


@pytest.mark.parametrize("changed, said", [
    (dict(noun=" "), "noun ''"), (dict(noun="* star"), r"noun '\* star'"), (dict(identifier=""), "identifier ''"),
    (dict(identifier="embedding:my dog"), "new word is called 'my dog'"),
    (dict(captions="a * star\na star at night"), r"1 of Learn a Subject's 2 captions have no \*"),
    (dict(captions="a * star\n" * 3), "Learn a Subject has 2 pictures and 3 captions"),
    (dict(captions="a * starfish\na * star"), "1 of Learn a Subject's 2 captions have no noun 'star'"),
    (dict(lr=0.0), "learning rate of LoRA is 0"), (dict(mask=torch.zeros(1, 64, 64)), "paint a mask"),
    (dict(noun="star, ring"), "the noun 'star, ring'.*write one noun"), (dict(others="* ring"), "others .* without"),
    (dict(others="ring"), "Of 2 class pictures 0 are of other things, and 1 of these are named: make 3"),
    (dict(others="ring", class_images=ConceptImages(())), "behind Class Images' noun")],
    ids=["no noun", "noun", "identifier", "word", "caption", "captions", "class", "rate", "mask", "nouns", "others",
         "too many", "made"])
def test_a_subject_that_cannot_be_learned_is_refused_before_its_class_is_sampled(changed, said, monkeypatch):
    monkeypatch.setattr(PalimpsestClassImages, "execute", None)  # would be an error of another kind
    asked = dict(noun="star", identifier="sks", steps=1, lr=1e-2, rank=4, batch=1, class_count=2, cfg=1.0, drift=0.1,
                 seed=0)
    with pytest.raises(ValueError, match=said):
        in_lists(PalimpsestLearnSubject, tiny.sd15(), tiny.clip(), tiny.taesd(), torch.rand(2, 64, 64, 3),
                                       **asked | changed)
