"""Concept Images and Learn a Subject from batches and lists, on the host's executor."""
import pytest
import torch
from palimpsest.concept.custom_diffusion import AFAR, NEAR
from palimpsest.editing import forecast
from palimpsest.editing.concepts import SLOT
from palimpsest.nodes.concept import images
from palimpsest.nodes.concept.dreambooth import PalimpsestLearnSubject
from palimpsest.nodes.concept.images import PalimpsestClassImages, PalimpsestConceptImages

import clips
import nodes
import tiny
from headless import Executor
from node_execution import executor, in_lists  # noqa: F401  runs every test as the host does
from serving import server  # noqa: F401  a fixture

SIZES = (64, 48), (32, 64), (48, 48)
PICTURES = [torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(n)) for n, size in enumerate(SIZES)]
MASKS = [torch.rand(1, *size, generator=torch.Generator().manual_seed(n)).round() for n, size in enumerate(SIZES)]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


class Folder:
    """A loader of a folder's pictures, their masks and their texts."""
    RETURN_TYPES, OUTPUT_IS_LIST, FUNCTION, CATEGORY = ("IMAGE", "MASK", "STRING"), (True, True, True), "load", ""
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})

    def load(self):
        return PICTURES, MASKS, ["a *\nat night", "a * by day", "* alone"]


class Kept:
    """An output node that keeps what comes to it."""
    RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "keep", ""
    INPUT_TYPES = classmethod(lambda cls: {"required": {"given": ("CONCEPT_IMAGES",)}})
    found: list = []

    def keep(self, given):
        self.found.append(given)
        return {}


def test_a_list_of_pictures_of_any_sizes_is_one_concept(server, monkeypatch):  # noqa: F811
    """As a batch of each would be that joins through 'more'."""
    for kind in (Folder, Kept):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    monkeypatch.setattr(Kept, "found", [])
    run, graph = Executor(server), {
        "load": node("PalimpsestLoadMiniature"), "folder": node("Folder"), "keep": node("Kept", given=["images", 0]),
        "images": node("PalimpsestConceptImages", images=["folder", 0], vae=["load", 2], captions=["folder", 2],
                       identifier="sks", mask=["folder", 1])}
    assert run(graph), run.host.status_messages[-1]
    given, = Kept.found
    vae, joined = nodes.NODE_CLASS_MAPPINGS["PalimpsestLoadMiniature"].execute().result[2], None
    for picture, mask, text in zip(PICTURES, MASKS, ["a * at night", "a * by day", "* alone"]):
        joined, = in_lists(PalimpsestConceptImages, picture, vae, text, "sks", joined, mask).result
    assert given.identifier == joined.identifier == "sks" and len(given.examples) == 3
    for found, alone in zip(given.examples, joined.examples):
        assert found.caption == alone.caption and torch.equal(found.latent, alone.latent)
        assert torch.equal(found.masks[SLOT], alone.masks[SLOT])
    assert len({e.latent.shape for e in given.examples}) == 3


def test_a_batch_is_the_list_of_its_pictures():
    batch = torch.cat([PICTURES[2]] * 2)
    one, = in_lists(PalimpsestConceptImages, batch, tiny.taesd(), "a *", "sks", None, MASKS[2]).result
    many, = PalimpsestConceptImages.execute([PICTURES[2]] * 2, [tiny.taesd()], ["a *"], ["sks"], mask=[MASKS[2]]).result
    assert [e.caption for e in one.examples] == [e.caption for e in many.examples] == ["a *"] * 2
    for a, b in zip(one.examples, many.examples):
        assert torch.equal(a.latent, b.latent) and torch.equal(a.masks[SLOT], b.masks[SLOT])


def test_mirrored_pictures_are_learned_where_they_are_asked_for():
    given = dict(images=PICTURES[:2], vae=[tiny.taesd()], captions=["a *", "the *"], identifier=["sks"])
    plain, = PalimpsestConceptImages.execute(**given, mask=MASKS[:2]).result
    both, = PalimpsestConceptImages.execute(**given, mask=MASKS[:2], flip=[True]).result
    mirrored, = PalimpsestConceptImages.execute(**given | {"images": [p.flip(2) for p in PICTURES[:2]]},
                                                mask=[m.flip(2) for m in MASKS[:2]]).result
    for found, wanted in zip(both.examples, (*plain.examples, *mirrored.examples), strict=True):
        assert torch.equal(found.latent, wanted.latent) and torch.equal(found.masks[SLOT], wanted.masks[SLOT])
        assert found.caption == wanted.caption
    assert not torch.equal(both.examples[0].latent, both.examples[2].latent)


@pytest.mark.parametrize("masks", [(), MASKS[:2]], ids=["whole", "masks"])
def test_each_picture_is_learned_at_random_sizes_too(masks):
    """Captions say it, what is around a smaller picture is not learned, and a seed gives the same again."""
    given = dict(images=[torch.rand(1, 96, 80, 3, generator=torch.Generator()) for _ in range(2)], vae=[tiny.taesd()],
                 captions=["a *", "the *"], identifier=["sks"], mask=[torch.ones(1, 96, 80)] * len(masks))
    plain, again, other, many = (PalimpsestConceptImages.execute(**given, sizes=[n], seed=[seed]).result[0].examples
                                 for n, seed in ((0, 0), (6, 0), (6, 1), (6, 0)))
    assert len(plain) == 2 and len(many) == len(other) == 2 * 7
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(plain, many))
    assert [e.caption for e in many] == [e.caption for e in again] != [e.caption for e in other]
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(many, again))
    said = {e.caption for e in many} - {"a *", "the *"}
    assert said and said <= {f"{words} *" for words in (*AFAR, *NEAR)}
    small = [e for e in many if e.caption.startswith(AFAR)]
    assert small and all(0 < e.masks[SLOT].mean() < 0.4 for e in small)
    assert all(bool(e.masks) == bool(masks) for e in plain)



@pytest.mark.parametrize("caption, rest", [("a photo of *", "photo of *"), ("An old *", "old *"), ("the *", "*"),
                                           ("* at night", "* at night"), ("another *", "another *"), ("a", "a")])
def test_words_of_a_size_take_the_captions_article_away(caption, rest):
    """As the authors' templates begin without it: "a far away photo of a"."""
    shot, vae = images.Shot(torch.rand(1, 64, 64, 3), caption, None), tiny.taesd()
    found = {images.resized(shot, vae, torch.Generator().manual_seed(seed)).caption for seed in range(40)}
    assert found == {caption, *(f"{words} {rest}" for words in (*AFAR, *NEAR))}


def test_a_random_size_that_shows_nothing_of_a_mask_is_left_out():
    mask = torch.zeros(1, 96, 80)
    mask[:, :8, :8] = 1
    given, = PalimpsestConceptImages.execute([torch.rand(1, 96, 80, 3, generator=torch.Generator())], [tiny.taesd()],
                                             ["a *"], ["sks"], mask=[mask], sizes=[20]).result
    assert 1 < len(given.examples) < 21 and all(e.masks[SLOT].any() for e in given.examples)


@pytest.mark.parametrize("changed, said", [
    (dict(vae=[None, None]), "'vae' has 2 values"), (dict(identifier=[]), "'identifier' has 0 values"),
    (dict(images=[]), "1 captions and no picture"), (dict(captions=["a *", "the *"]), "3 pictures and 2 captions"),
    (dict(mask=MASKS[:2]), "3 pictures and 2 masks"), (dict(mask=MASKS[:1]), "paint them on the pictures"),
    (dict(images=[torch.rand(1, 4, 64, 3)]), "64 × 4 pixels, and the VAE makes one cell of 8 × 8")],
    ids=["vae", "identifier", "none", "captions", "masks", "sizes", "small"])
def test_lists_that_do_not_fit_are_refused(changed, said):
    given = dict(images=PICTURES, vae=[tiny.taesd()], captions=["a *"], identifier=["sks"]) | changed
    with pytest.raises(ValueError, match=said):
        PalimpsestConceptImages.execute(**given)


ASKED = dict(noun="star", identifier="sks", steps=1, lr=1e-2, rank=4, batch=1, class_count=2, cfg=1.0, drift=0.1,
             seed=0)


def test_a_subject_is_learned_from_a_list_and_with_given_pictures_of_its_class(monkeypatch):
    model, clip, vae = tiny.sd15(), tiny.clip(), tiny.taesd()
    others, _ = PalimpsestClassImages.execute(
        model, clip, vae, "star", "a *", 2, 48, 64, 1, 1.0, "ddim", "simple", 0).result
    monkeypatch.setattr(images.nodes, "common_ksampler", None)  # makes no picture of the class
    asked = {name: [value] for name, value in dict(model=model, clip=clip, vae=vae, **ASKED).items()}
    concept = PalimpsestLearnSubject.execute(images=PICTURES, class_images=[others], **asked).result[2]
    assert len(concept.notes["captions"]) == 3 and concept.notes["class pictures"]
    with pytest.raises(ValueError, match="'seed' has 2 values"):
        PalimpsestLearnSubject.execute(images=PICTURES, class_images=[others], **asked | {"seed": [0, 1]})


def test_every_third_picture_of_a_class_is_of_other_things_that_stay():
    made = PalimpsestClassImages.execute(
        tiny.sd15(), tiny.clip(), tiny.taesd(), "star, big  heart , ring,", "a *\nthe *", 8, 64, 64, 1, 1.0, "ddim",
        "simple", 0).result[0]
    texts = [example.caption for example in made.examples]
    assert {text: texts.count(text) for text in texts} == {"a star": 3, "the star": 3, "a big heart": 1, "a ring": 1}
    assert images.class_prompts(["a *", "the *"], ["star", "ring"], 12)[-4:] == ["a ring", "the ring"] * 2
    with pytest.raises(ValueError, match="Of 8 class pictures 2 are of other things, and 3 .* make 9 pictures"):
        images.class_prompts(["a *"], ["star", "ring", "moon", "cross"], 8)
    with pytest.raises(ValueError, match="the noun ' , '.*give a noun"):
        PalimpsestClassImages.execute(None, None, None, " , ", "a *", 8, 64, 64, 1, 1.0, "ddim", "simple", 0)


class Asked(Exception):
    pass


@pytest.mark.parametrize("made, clip, channels, sampling", [
    (tiny.sd15, tiny.clip, 4, ("ddim", "ddim_uniform")),
    (tiny.flux, lambda: clips.clip("flux"), 16, ("euler", "simple"))],
    ids=["sd15", "flux"])
def test_the_class_is_sampled_as_its_family_is(made, clip, channels, sampling, monkeypatch):
    def asked(*given):
        raise Asked(given)

    monkeypatch.setattr(PalimpsestClassImages, "execute", asked)
    with pytest.raises(Asked) as found:
        in_lists(PalimpsestLearnSubject, made(), clip(), tiny.taesd(channels), PICTURES[0], **ASKED)
    assert found.value.args[0][-3:-1] == sampling


def test_a_subjects_class_has_others_beside_it(monkeypatch):
    def asked(model, clip, vae, noun, *given):
        raise Asked(noun)

    monkeypatch.setattr(PalimpsestClassImages, "execute", asked)
    for others, nouns in (("", "star"), (" heart, ring", "star, heart, ring")):
        with pytest.raises(Asked, match=f"^{nouns}$"):
            in_lists(PalimpsestLearnSubject, tiny.sd15(), tiny.clip(), tiny.taesd(), PICTURES[0],
                     **ASKED | {"class_count": 6}, others=others)


def test_memory_is_refused_before_the_class_is_sampled(monkeypatch):
    monkeypatch.setattr(PalimpsestClassImages, "execute", None)  # would be an error of another kind
    monkeypatch.setattr(forecast, "free_bytes", lambda *told: 1)
    with pytest.raises(ValueError, match="take smaller pictures"):
        in_lists(PalimpsestLearnSubject, tiny.sd15(), tiny.clip(), tiny.taesd(), PICTURES[0], **ASKED)


def test_guidance_upon_guidance_is_said(caplog):
    model, clip, vae = tiny.flux(guidance_embed=True), clips.clip("flux"), tiny.taesd(16)
    for cfg in 1.0, 2.0:
        assert "CFG" not in caplog.text
        PalimpsestClassImages.execute(model, clip, vae, "star", "a *", 1, 48, 64, 1, cfg, "euler", "simple", 0)
    assert "CFG 2 upon it burns" in caplog.text
