"""Every editor with areas, other prompts' entries and guiders other than the host's own."""
import math
from dataclasses import dataclass
from functools import cache

import comfy_extras.nodes_custom_sampler as samplers
import node_helpers
import pytest
import torch
import torch.nn.functional as F
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_perpneg import PerpNegGuider
from palimpsest.editing.editor import Editor
from palimpsest.editing.run import attach
from palimpsest.editing.sites import AttentionEdit, mask_at
from palimpsest.editing.word_maps import WordMaps
from palimpsest.host.unet import resolutions

import nodes as host
import tiny
from editors import CROSS_END, EDITORS, FEATURES, GUIDED, MOVES, ON_JOINT, SELF_END, STEPS, each_in_turn, each_with
from runs import Case
from watching import acts, assert_close, case, differ, each_family, limit, of, predictions, watch

# these read neither features nor words in the network's attention while the target is predicted
BY_LATENTS = "blend", "excite", "shrinking", "objects", "noise mask", "weigh", "noise map", "rf guide", "uni edit"


def area(conditioning, width, height, x=0, y=0):
    """Conditioning (Set Area), in latent cells."""
    return host.ConditioningSetArea().append(conditioning, *(8 * n for n in (width, height, x, y)), 1.0)[0]


def combine(*conditionings):
    return [entry for c in conditionings for entry in c]


@each_in_turn(1)
def test_an_area_of_the_whole_picture_is_no_area(editor, family):
    """On the target, and on the null prompt, where the host gives the target a second entry for it."""
    c = case(family, size=16)
    model = EDITORS[editor](c)
    free = c.sample(model)
    assert_close(c.sample(model, area(c.target, 16, 16)), free)
    assert_close(c.sample(model, negative=area(c.null, 16, 16)), free)


@pytest.mark.parametrize("editor", ON_JOINT)
def test_where_words_and_picture_are_joined_a_smaller_area_is_refused_in_words(editor):
    """By those that look at attention; the others run. An area of the whole picture is none, also as the bounds of a
    mask."""
    c = case("flux")
    model = {**EDITORS, **GUIDED}[editor](c)
    assert_close(c.sample(model, area(c.target, 8, 8)), c.sample(model))
    c.sample(model, combine(c.target, host.ConditioningSetMask().append(c.target, torch.ones(1, 64, 64).tril(),
                                                                        "mask bounds", 1.0)[0]))
    part = combine(c.target, area(c.target, 4, 4))
    if editor in BY_LATENTS:
        assert c.sample(model, part).isfinite().all()
    else:
        with pytest.raises(ValueError, match="area of 2 x 2 of the source's 4 x 4 .* remove .*Set Area"):
            c.sample(model, part)


@dataclass(frozen=True, eq=False)
class Passing(AttentionEdit):
    """Acts everywhere and changes nothing. Records what masks are in the rows' window."""
    masks: list
    notes: list

    def acts(self, run, site, sigma):
        return True

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes.append([mask_at(mask, rows, site) for mask in self.masks])
        return attention(q, k, v)


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_an_area_in_joint_attention_is_the_hosts_own_where_nothing_is_read(family):
    """A video's has frames too, of masks that have some."""
    video, notes = family == "wan", []
    sizes, starts = ((2, 4, 6), (1, 2, 0)) if video else ((4, 6), (2, 0))
    c = Case(family, steps=STEPS, latent=torch.randn(1, 16, 3, 8, 8) if video else None)
    positive = combine(c.target, node_helpers.conditioning_set_values(c.target, {"area": (*sizes, *starts)}))
    masks = [torch.rand(1, 8, 8), *([torch.rand(1, 3, 8, 8)] if video else [])]
    edited = c.sample(attach(c.model, Passing(masks, notes)), positive)
    assert torch.equal(edited, c.sample(positive=positive))
    where = [slice(start, start + size) for size, start in zip(sizes, starts)]
    expected = [F.avg_pool2d(mask[(slice(None), *where[1 - mask.ndim:])], 2).flatten(1) for mask in masks]
    windows = [found for found in notes if found[0].shape[1] < notes[0][0].shape[1]]
    assert windows and all(torch.equal(found[-1], expected[-1]) for found in windows)
    assert all(torch.equal(found[0], expected[0].repeat(1, math.prod(sizes[:-2]))) for found in windows)


@dataclass(frozen=True, eq=False)
class Noted(AttentionEdit):
    """Records the source's features that the target's entries get."""
    inversion: object
    notes: dict

    def reads(self, run, sigma):
        return True

    def acts(self, run, site, sigma):
        return True

    def keeps(self, run, site, sigma):
        return "qkv"

    def attend(self, rows, site, q, k, v, source, attention):
        place = rows.entry.get("area", (*rows.call.run.shape[-2:], 0, 0))
        self.notes.setdefault((rows.call.sigma, site.kind, site.address), {})[place] = (site, source)
        return attention(q, k, v)


@each_family
def test_an_area_reads_the_same_window_of_the_source(family):
    c, notes = case(family, size=16), {}
    places = [(8, 8, 8, 8), (10, 12, 2, 4)]  # height, width, y, x
    positive = combine(c.target, *(area(c.target, w, h, x, y) for h, w, y, x in places))
    c.sample(attach(c.model, Noted(c.inversion, notes)), positive)
    assert len(notes) == STEPS * 2 * len(resolutions(c.model.model.diffusion_model))
    for (_, kind, _), found in notes.items():
        site, full = found.pop((16, 16, 0, 0))
        assert found.keys() == set(places)
        for (h, w, y, x), (part, source) in found.items():
            cells = [slice(int(n * site.resolution), int((n + size) * site.resolution)) for n, size in ((y, h), (x, w))]
            assert part.grid == tuple(s.stop - s.start for s in cells)
            for name in "qkv":
                whole, window = getattr(full, name), getattr(source, name)
                if name == "q" or kind == "self":
                    whole = whole.unflatten(1, site.grid)[:, cells[0], cells[1]].flatten(1, 2)
                assert torch.equal(window, whole)


@dataclass(frozen=True, eq=False)
class Means(Editor):
    """Records the maps of words after each step."""
    gather: WordMaps
    notes: list

    def after(self, run, x0, sigma):
        self.notes.append(self.gather.mean(run))
        return x0


@each_family
def test_the_maps_of_an_area_lie_in_its_window(family):
    """A place that is seen in the whole too, by the target or for the null prompt's area, has the mean of both."""
    c, gather = case(family, size=16), WordMaps(lambda prompts: [tokens.words for tokens in prompts], 0.5)
    window = area(c.target, 10, 8, 4, 6)

    def first(positive, negative=None):
        notes = []
        c.sample(attach(attach(c.model, gather), Means(gather, notes)), positive, negative=negative)
        return notes[0]

    whole, alone = first(c.target), first(window)
    assert whole.shape == alone.shape == (1, len(c.edit.pairs[0].target.words), 8, 8)
    inside = torch.zeros(8, 8)
    inside[3:7, 2:7] = 1
    assert torch.equal(alone > 0, (inside > 0).expand_as(alone))
    both = whole * (1 - inside) + (whole + alone) / 2 * inside
    assert_close(first(combine(c.target, window)), both)
    assert_close(first(c.target, area(c.null, 10, 8, 4, 6)), both)



@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_maps_of_steps_with_smaller_grids_join_the_others(family):
    """As Deep Shrink makes them in the first steps, and inside an area of the target."""
    c, notes = case(family, size=16), []
    gather = WordMaps(lambda prompts: [tokens.words for tokens in prompts], 0.5, fine=0.5)
    shrunk = PatchModelAddDownscale.execute(c.model, 1, 2.0, 0.0, 0.35, True, "bicubic", "bicubic").result[0]
    c.sample(attach(attach(shrunk, gather), Means(gather, notes)), area(c.target, 8, 8, 8, 8))
    inside = torch.zeros(8, 8)
    inside[4:, 4:] = 1
    assert len(notes) == STEPS and all(torch.equal(maps > 0, (inside > 0).expand_as(maps)) for maps in notes)
    twice = notes[0].unflatten(2, (4, 2)).unflatten(4, (4, 2))  # a cell of theirs is four
    assert torch.equal(twice, twice[:, :, :, :1, :, :1].expand_as(twice)) and differ(notes[0], notes[-1])
    assert c.sample(EDITORS["blend by words"](c, shrunk)).isfinite().all()


@each_in_turn(2)
def test_entries_that_prompt_edit_did_not_make_keep_their_own_cross_attention(editor, family):
    """Beside other entries the target is edited as it is alone. Shown at the source's
    latents, before the host's mean."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family, size=16)
    model = EDITORS[editor](c)
    other = area(tiny.encode(c.clip, "a green parrot"), 8, 16)
    beside, alone, plain = (predictions(c, m, positive=p) for m, p in (
        (model, combine(c.target, other)), (model, c.target), (c.model, combine(c.target, other))))
    parrots = [[k for k in of(chunks, "positive") if k.entry == ("positive", 1)] for chunks in (beside, plain)]
    targets = [[k for k in of(chunks, "positive") if k.entry == ("positive", 0)] for chunks in (beside, alone)]
    for a, b in zip(*targets, strict=True):
        assert_close(a.x0, b.x0)
    end = CROSS_END if editor in FEATURES else SELF_END
    for a, b in zip(*parrots, strict=True):
        if a.sigma < limit(c, end):  # at these steps the picture's own features are kept
            assert_close(a.x0, b.x0)
    assert any(k.sigma < limit(c, end) for k in parrots[0])


def dual(case, middle):
    def make(model):
        return DualCFGGuider.execute(model, case.target, middle, case.null, 7.5, 3.0, "regular").result[0]
    return make, ("negative", "middle", "positive")


def perp_neg(case, middle):
    def make(model):
        return PerpNegGuider.execute(model, case.target, middle, case.null, 7.5, 1.0).result[0]
    return make, ("positive", "negative", "empty_negative_prompt")


def dual_model(case, middle):
    """The null prompt on its own MODEL, which is not edited."""
    def make(model):
        return samplers.DualModelGuider.execute(model, case.target, 7.5, case.model.clone(), middle).result[0]
    return make, ("positive",)


def guided(family, guider, editor=""):
    """(names of its prompts, predictions, end) of the guider's runs with an editor, or with none."""
    c = case(family)
    model = EDITORS[editor](c) if editor else c.model
    make, order = guider(c, tiny.encode(c.clip, "a dull photo"))
    found = predictions(c, model, guider=make, order=order)
    return order, [k for k in found if k.role in order], watch(c, model, make, order)[0]


unedited = cache(guided)


@each_with("guider", [dual, perp_neg, *[dual_model] * hasattr(samplers, "DualModelGuider")], 0, some=1)
def test_of_every_guiders_prompts_the_positive_alone_is_edited(editor, family, guider):
    """At equal latents, every other prompt's prediction equals the plain model's."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family)
    (order, edited, end), (_, plain, plain_end) = guided(family, guider, editor), unedited(family, guider)
    assert {k.entry[0] for k in edited} >= set(order)
    for a, b in zip(edited, plain, strict=True):
        assert a.entry == b.entry
        if a.entry[0] == "positive":
            assert differ(a.x0, b.x0) == acts(editor, c, a.sigma)
        else:
            assert_close(a.x0, b.x0)
    assert differ(end, plain_end)
