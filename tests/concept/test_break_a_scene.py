"""Break-A-Scene: a step against the authors' lines on diffusers' network, the law of its draws, its nodes."""
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from palimpsest.bench import twin
from palimpsest.concept import neti
from palimpsest.concept.break_a_scene import MaskAttention, caption, unions
from palimpsest.concept.custom_diffusion import KeysAndValues
from palimpsest.concept.neti import NeuralSpaceTime
from palimpsest.concept.p_plus import ExtendedTextualInversion
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing import learner, learning
from palimpsest.editing.concepts import ConceptImages, Example, Prior
from palimpsest.editing.learning import learn_concept
from palimpsest.editing.word_spaces import stage_of
from palimpsest.host.concept_files import lora_names
from palimpsest.host.layered import transformers
from palimpsest.nodes.concept.break_a_scene import PalimpsestMaskAttention, PalimpsestSceneParts
from palimpsest.nodes.concept.images import PalimpsestConceptImages
from palimpsest.nodes.concept.learn import PalimpsestLearnConcept

import tiny
from concepts import drawn, images
from node_execution import executor, in_lists  # noqa: F401  runs every test as the host does
from runs import relative
from word_spaces import CAPTION, Plain

SEED, SIZE, WEIGHT, PRIOR = 4, 16, 0.5, 0.7
WORDS = TextualInversion("cup", "cat", 1, 1e-2), TextualInversion("bear", "cat", 1, 1e-2)
NAMES = tuple(f"embedding:{word.name}" for word in WORDS)


def masks():
    """Of two things, which overlap."""
    left, low = torch.zeros(2, SIZE, SIZE)
    left[:, :6], low[9:] = 1, 1
    return dict(zip(NAMES, (left, low)))


def scene(model):
    latent = model.model.process_latent_out(tiny.latent(model, 1, SIZE, 3))[0]
    return ConceptImages((Example(latent, caption(NAMES), masks()),))


class Attention:
    """What the authors put in the place of attention: it keeps the maps."""

    def __init__(self, kept):
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (attn.head_to_batch_dim(t) for t in (
            attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        probs = attn.get_attention_scores(query, key, attention_mask)
        if encoder_hidden_states is not None:
            self.kept.append(probs)
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probs, value)))


def test_a_step_equals_the_authors_program():
    """The loss and the gradients of the keys and values, on equal weights, with class pictures."""
    model, clip = tiny.sd15(), tiny.clip()
    given, others = scene(model), images(model, ("a dog",), seed=8, size=SIZE)
    learned = learn_concept(model, clip, given, [KeysAndValues(1e-3), *WORDS], Prior(others, PRIOR), steps=1, seed=SEED,
                            objective=MaskAttention(WEIGHT), norm=math.inf)
    generator, draws = torch.Generator().manual_seed(SEED), []
    for _ in range(2):
        torch.randint(1, (1,), generator=generator)
        draws.append((int(torch.randint(1000, (), generator=generator)),
                      torch.randn(1, *given.examples[0].latent.shape, generator=generator)))
    with torch.inference_mode(False), torch.enable_grad():
        unet, kept, predictions = twin.unet(model, SIZE), [], []
        unet.set_attn_processor({name: Attention(kept if name.startswith(("down", "up")) else [])
                                 for name in unet.attn_processors})
        like = " and ".join(["cat"] * len(WORDS))
        for (level, noise), text, one in zip(draws, (f"a photo of {like}", "a dog"), (given, others)):
            clean, noise = model.model.process_latent_in(one.examples[0].latent.clone())[None], noise.clone()
            sigma = model.model.model_sampling.sigmas[level].clone()
            context = tiny.encode(clip, text)[0][0].clone()
            noisy = (clean + sigma * noise) / (1 + sigma ** 2) ** 0.5
            predictions.append((unet(noisy, level, context).sample, noise))
            if not predictions[1:]:
                maps = [m for m in kept if m.shape[1] == (SIZE // 2) ** 2]  # the tiny network's coarsest
        (model_pred, target), (model_pred_prior, target_prior) = predictions
        instance_masks = torch.stack([m.clone() for m in masks().values()])[None, :, None]
        max_masks = torch.max(instance_masks, axis=1).values
        downsampled_mask = F.interpolate(input=max_masks, size=(SIZE, SIZE))
        loss = F.mse_loss(model_pred * downsampled_mask, target * downsampled_mask)
        loss = loss + PRIOR * F.mse_loss(model_pred_prior, target_prior)
        side = SIZE // 2
        agg_attn = torch.cat([m.reshape(-1, side, side, m.shape[-1]) for m in maps])
        agg_attn = agg_attn.sum(0) / agg_attn.shape[0]
        tokens = [token for token, _ in clip.tokenize(f"a photo of {like}")["l"][0]]
        cat = clip.tokenize("cat")["l"][0][1][0]
        places = [n for n, token in enumerate(tokens) if token == cat]
        for asset, place in zip(F.interpolate(instance_masks[0], size=(side, side))[:, 0], places, strict=True):
            asset_attn_mask = agg_attn[..., place] / agg_attn[..., place].max()
            loss = loss + WEIGHT * F.mse_loss(asset, asset_attn_mask)
        inside = dict(unet.named_parameters())
        ours = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        files = lora_names(model)
        theirs = {f"{files[ours[name]]}.diff": p for name, p in inside.items() if ours.get(name) in files}
        means = [state["exp_avg"] / 0.1 for state in learned.state["optimiser"]["state"].values()]
        found = dict(zip(learned.weights, means))
        wanted = torch.autograd.grad(loss, [theirs[name] for name in found])
    assert len(maps) == 3 and learned.losses[0] == pytest.approx(float(loss), rel=1e-6)
    assert relative(torch.cat([g.flatten() for g in found.values()]), torch.cat([g.flatten() for g in wanted])) < 1e-5
    assert len(found) == len(means) - len(WORDS) and all(mean.any() for mean in means)


@pytest.mark.parametrize("kind", [ExtendedTextualInversion, NeuralSpaceTime])
def test_maps_of_a_word_in_layers_are_each_layers_own(kind, monkeypatch):
    """Through diffusers' network, where each cross-attention takes keys and values of its own text. The masks of two
    words cover the picture."""
    monkeypatch.setattr(neti, "DROPOUT", 0.0)
    model, clip, word = tiny.sd15(), tiny.clip(), kind("thing", "cat", 1, 1e-2)
    left, right = torch.zeros(2, 8, 8)
    left[:, :3], right[:, 3:] = 1, 1
    given = ConceptImages((Example(images(model).examples[0].latent, CAPTION, {"*": left, "dog": right}),), "sks")
    learned = learn_concept(model, clip, given, [word], steps=1, seed=SEED, objective=MaskAttention(WEIGHT))
    generator, places = torch.Generator().manual_seed(SEED), transformers(model.model.diffusion_model)
    with torch.inference_mode(False):
        plain, kept = Plain(model, clip), []
        plain.unet.set_attn_processor({name: Attention(kept if name.startswith(("down", "up")) else [])
                                       for name in plain.unet.attn_processors})
        theta = word.begin({"clip_l": plain.vector[None]}, len(places), generator)
        (_, level, noise), = drawn(model, 1, 1, generator)
        sampling = model.model.model_sampling
        at = word.at(theta, stage_of(sampling, float(sampling.sigmas[level]), word.stages))
        vectors, added = at.vectors["clip_l"][:, 0], at.added.get("clip_l")
        texts = [plain.text(v) for v in vectors] if added is None else [
            plain.bypassed(v, b, 0.2) for v, b in zip(vectors, added[:, 0])]
        keys, values = (texts, None) if added is None else zip(*texts)
        wanted = plain.loss(keys, level, noise, values)
        maps = torch.stack([m.reshape(-1, 4, 4, m.shape[-1]).mean(0) for m in kept if m.shape[1] == 16]).mean(0)
        for place, mask in ((plain.place, left), (plain.place + 1, right)):
            shown = F.interpolate(mask[None, None].clone(), size=(4, 4))[0, 0]
            wanted = wanted + WEIGHT * F.mse_loss(maps[..., place] / maps[..., place].max(), shown)
    assert learned.losses[0] == pytest.approx(float(wanted), rel=1e-5)


def test_captions_of_unequal_length_share_a_step(monkeypatch):
    """Each word's map is read at its own place, whether the rows share a forward or not."""
    model, clip = tiny.sd15(), tiny.clip()
    latents = model.model.process_latent_out(tiny.latent(model, 2, SIZE, 3))
    texts = f"a photo of {NAMES[0]}", "very " * 90 + NAMES[0]
    given = ConceptImages(tuple(Example(z, text, {NAMES[0]: masks()[NAMES[0]]}) for z, text in zip(latents, texts)))
    losses = []
    for together in (2 ** 30, 0):
        monkeypatch.setattr(learner, "TOGETHER", together)
        losses.append([learn_concept(model, clip, given, [WORDS[0]], steps=1, batch=2, seed=seed,
                                     objective=MaskAttention(1.0)).losses[0] for seed in (0, 5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sets_of_things_are_drawn_by_the_authors_law(count):
    """randrange(1, count + 1) of them, then sample(k): each set of k has 1 / (count · (count over k))."""
    words = tuple("abcd"[:count])
    found = list(unions(words))
    law = {chosen: Fraction(1, count * math.comb(count, k)) for k in range(1, count + 1)
           for chosen in combinations(words, k)}
    assert {chosen: Fraction(n, len(found)) for chosen, n in Counter(found).items()} == law
    assert caption(words[:2]) == "a photo of " + " and ".join(words[:2])


@pytest.mark.parametrize("text, identifier", [("a photo of a dog", "sks"), ("a * dog", "sks red"),
                                              ("a * dog", "sks, red"), ("a * dog", "(sks:1.1)")])
def test_a_caption_without_the_masks_word_is_said_before_a_step(text, identifier, monkeypatch):
    monkeypatch.setattr(learning, "differentiable", None)  # would be an error of another kind
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, ("a photo of *" if identifier == "sks" else text, text), identifier)
    given = ConceptImages(tuple(replace(e, masks={"*": torch.ones(8, 8)}) for e in given.examples), identifier)
    read = re.escape(text.replace("*", identifier))
    with pytest.raises(ValueError, match=f"the caption '{read}' has the words a, .*an identifier of one word"):
        learn_concept(model, clip, given, [KeysAndValues(1e-3)], objective=MaskAttention())


def parts(names="cup\nbear", flip=True, areas=2):
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    found = torch.zeros(areas, 32, 32)
    found[0, :, :8], found[-1, 24:] = 1, 1
    return PalimpsestSceneParts.execute(picture, found, tiny.taesd(), names, flip).result[0], picture


def test_parts_are_every_set_of_things_with_its_masks_and_mirrored():
    given, picture = parts()
    assert [e.caption for e in given.examples[:4]] == [
        f"a photo of {NAMES[0]}", f"a photo of {NAMES[1]}", caption(NAMES), caption(NAMES)]
    assert len(given.examples) == 8 and len(parts(flip=False)[0].examples) == 4
    first, mirrored = given.examples[2], given.examples[6]
    assert list(first.masks) == list(NAMES) and list(given.examples[0].masks) == [NAMES[0]]
    assert torch.equal(first.masks[NAMES[0]], mirrored.masks[NAMES[0]].flip(1)) and first.masks[NAMES[0]].sum() == 4
    assert torch.equal(mirrored.latent, tiny.taesd().encode(picture.flip(2))[0])


def test_a_grey_picture_is_read_in_three_channels():
    masks, grey = torch.ones(1, 32, 32), torch.full((1, 32, 32, 1), 0.3)
    alone, coloured = (PalimpsestSceneParts.execute(p, masks, tiny.taesd(), "cup", False).result[0].examples[0].latent
                       for p in (grey, grey.expand(-1, -1, -1, 3)))
    assert torch.equal(alone, coloured)


def test_words_learn_apart_and_the_weights_after_them():
    """Two chained Learn Concepts: the words, then the network and the text encoder under them."""
    model, clip, given = tiny.sd15(), tiny.clip(), parts()[0]
    objective, = PalimpsestMaskAttention.execute(WEIGHT).result
    m, c, words, losses, _ = PalimpsestLearnConcept.execute(model, clip, given, WORDS, 2, 1, 0, objective).result
    cup, bear = (words.words[word.name]["clip_l"] for word in WORDS)
    assert relative(cup, bear) > 1e-3  # both began as a cat
    _, _, weights, more, _ = PalimpsestLearnConcept.execute(
        m, c, given, (KeysAndValues(1e-3),), 2, 1, 0, objective).result
    assert weights.weights and not weights.words and len(losses["loss"]) == len(more["loss"]) == 2
    assert all(torch.is_tensor(c.tokenize(name)["l"][0][1][0]) for name in NAMES)


def concept_images(count, mask):
    picture = torch.rand(count, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    return in_lists(PalimpsestConceptImages, picture, tiny.taesd(), "a photo of *", "sks", None, mask).result[0]


def test_concept_images_are_learned_where_their_mask_shows_them():
    model, clip, half = tiny.sd15(), tiny.clip(), torch.ones(1, 32, 32)
    half[:, 8:] = 0
    whole, same, part, faint = (
        learn_concept(model, clip, concept_images(2, mask), [KeysAndValues(1e-3)], steps=1).losses[0]
        for mask in (None, torch.ones(2, 32, 32), half, torch.full((1, 32, 32), 0.5)))
    assert same == whole and 0 < part < whole and faint == pytest.approx(whole / 4, rel=1e-5)


@pytest.mark.parametrize("height, width", [(37, 46), (32, 47), (39, 40)])
def test_masks_are_cropped_as_the_vae_crops_their_picture(height, width):
    """To multiples of 8, from both sides: a pixel of the picture stands in the cell that shows it."""
    rows, columns = height // 8, width // 8
    cells = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(2)).round()
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(3))
    top, left = height % 8 // 2, width % 8 // 2
    mask[:, top:top + rows * 8, left:left + columns * 8] = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    picture, vae = torch.rand(2, height, width, 3), tiny.taesd()
    given, = in_lists(PalimpsestConceptImages, picture, vae, "a photo of *", "sks", None, mask).result
    scene, = PalimpsestSceneParts.execute(picture[:1], mask, vae, "cup\nbear", False).result
    for found in ([e.masks["*"] for e in given.examples], [scene.examples[-1].masks[name] for name in NAMES]):
        assert torch.equal(torch.stack(found), cells)
    assert all(e.latent.shape[-2:] == cells.shape[1:] for e in (*given.examples, *scene.examples))


def refused(match, call, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
        call(*args, **kwargs)


def test_what_cannot_be_learned_is_refused():
    model, clip, given = tiny.sd15(), tiny.clip(), parts()[0]
    refused("2 pictures and 3 masks", concept_images, 2, torch.ones(3, 32, 32))
    refused("16 × 32 pixels", concept_images, 2, torch.ones(1, 32, 16))
    refused("has 0 cells", learn_concept, model, clip, concept_images(1, torch.zeros(1, 32, 32)), [KeysAndValues(1)])
    refused("1 masks and 2 names", parts, areas=1)
    refused("a b is no name", parts, "a b\nbear")
    refused("cup is no name", parts, "cup\ncup")
    refused("cup is no name", parts, "cup\nCup")
    refused("bear is in none of the 2 captions", learn_concept, model, clip, parts("cup", areas=1)[0], WORDS)
    refused("captions have no", learn_concept, model, clip, given, WORDS[:1])
    refused("one after the other", learn_concept, model, clip, images(model), WORDS)
    refused("one after the other", learn_concept, model, clip, given,
            [WORDS[0], ExtendedTextualInversion("bear", "cat", 1, 1e-2)])
    refused("1 of 1 pictures have no mask", learn_concept, model, clip, images(model), [KeysAndValues(1e-3)],
            objective=MaskAttention())
    refused("attention of U-Nets", learn_concept, tiny.flux(), clip, given, WORDS, objective=MaskAttention())
