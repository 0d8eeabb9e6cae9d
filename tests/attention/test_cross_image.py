"""Cross-image attention against explicit softmax maps: contrast, statistics, guidance and its grids."""
from dataclasses import dataclass, field, fields

import pytest
import torch
from palimpsest.attention import cross_image
from palimpsest.attention.cross_image import CrossImage, contrasted, statistics, two_finest
from palimpsest.editing.editor import editors
from palimpsest.editing.layers import parse_layers
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Rows, Source

from explicit import HEADS, SIDE, Call, Run, apply_maps, attention, features, relative, softmax_maps
from families import FAMILIES
from style_edits import SITE, case, cross, half, inject, other
from unets import sd15, sdxl


@pytest.mark.parametrize("cells", [1, 2 * HEADS * 5 * SIDE ** 2, 2 ** 24])
def test_contrast_is_that_of_the_maps_however_many_are_made_at_once(cells, monkeypatch):
    monkeypatch.setattr(cross_image, "CELLS", cells)
    q, k, v = (2 * x for x in features(2, 0))
    maps = softmax_maps(q, k)
    mean = maps.mean(-1, keepdim=True)
    spread = (maps - mean) * 1.67 + mean
    assert spread.min() < 0 and spread.max() > 1
    assert relative(attention(q, k, v) + contrasted(q, k, v, HEADS, 1.67), apply_maps(spread.clip(0, 1), v)) < 1e-5
    assert contrasted(q, k, v, HEADS, 1.0).abs().max() < 1e-5


def test_contrast_changes_maps_and_keeps_what_another_function_makes_of_the_plain_ones():
    """Another pack's patch or an inner edit is called once, with the appearance's k and v."""
    target, source = features(2, 0), features(2, 1)
    called = []

    def other(q, k, v):
        called.append((q, k, v))
        return 1.5 * attention(q, k, v) + 1

    whole = torch.ones(1, SIDE, SIDE)
    editor = CrossImage(None, frozenset(), 0, 1, fine=frozenset(), contrast=1.67, structure=whole, appearance=whole)
    got = editor.attend(Rows(Call(Run()), {}, 2), SITE, *target, Source(zip("qkv", source)), other)
    maps, mean = softmax_maps(target[0], source[1]), 1 / SIDE ** 2
    wanted = apply_maps(((maps - mean) * 1.67 + mean).clip(0, 1) + 0.5 * maps, source[2]) + 1
    assert relative(got, wanted) < 1e-5
    assert len(called) == 1 and all(a is b for a, b in zip(called[0], (target[0], *source[1:]), strict=True))


def test_statistics_are_those_of_the_places_in_the_mask():
    x, m = torch.randn(2, 4, 6, 6), (torch.rand(2, 6, 6) > 0.5).float()
    mean, std = statistics(x, m)
    for i in range(2):
        for channel in range(4):
            inside = x[i, channel][m[i] == 1]
            torch.testing.assert_close(mean[i, channel, 0, 0], inside.mean())
            torch.testing.assert_close(std[i, channel, 0, 0], (inside.var() + 1e-5).sqrt())


def test_the_two_finest_grids_of_the_decoder_are_the_papers_layers():
    assert two_finest(sd15()) == parse_layers("u3-8", sd15()) and two_finest(sdxl()) == parse_layers("u", sdxl())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_its_own_appearance_stays(family):
    c = case(family)
    mine = cross(c, swap_guidance=3.5, appearance=c.inversion)
    for a, b in zip(c.predictions(mine, c.source), c.predictions(c.model, c.source), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_goes_from_the_prediction_without_the_exchange_which_other_editors_edit_too(family):
    c = case(family)
    for base in (c.model, inject(c, c.model)):
        found, swapped, own = (c.predictions(m, c.target, cfg=4.0) for m in (
            cross(c, model=base, swap_guidance=3.5), cross(c, model=base), base))
        null = c.predictions(c.model, c.null)
        for alpha, x0, swap, plain, n in zip((3.5, 2.625, 1.75), found, swapped, own, null, strict=True):
            assert relative(x0, plain + alpha * (swap - plain)) < 1e-4
            assert relative(swap, plain) > 1e-3 and relative(plain, n) > 1e-3


@dataclass(frozen=True, eq=False)
class Noted(CrossImage):
    notes: set = field(kw_only=True)

    def attend(self, rows, site, *args, **kwargs):
        self.notes.add((rows.call.sigma, site.resolution))
        return super().attend(rows, site, *args, **kwargs)


def test_each_grid_has_an_end_of_its_own():
    """Of three steps, the finest grid is read at two and the next grid at the first."""
    c, seen = case(), set()
    editor = editors(cross(c, end=0.7, coarse_end=0.4))[0]
    noted = Noted(**{f.name: getattr(editor, f.name) for f in fields(editor)}, notes=seen)
    c.sample(attach(c.model, noted), cfg=1.0)
    first, second, *_ = c.sigmas.tolist()
    assert seen == {(first, 1.0), (second, 1.0), (first, 0.5)}


def test_the_object_takes_the_mean_and_deviation_of_the_appearances():
    c = case()
    model = cross(c, end=0.1, coarse_end=0.1, adain_start=0.5, structure_mask=half(), appearance_mask=1 - half())
    plain, clean = cross(c, end=0.1, coarse_end=0.1), other().latents[-1]
    for step, (a, b) in enumerate(zip(c.predictions(model, c.target), c.predictions(plain, c.target), strict=True)):
        if step == 0:
            assert torch.equal(a, b)
            continue
        left, right = a[..., :4], clean[..., 4:]
        torch.testing.assert_close(left.mean((2, 3)), right.mean((2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left.std((2, 3)), right.std((2, 3)), atol=1e-4, rtol=1e-3)
        assert torch.equal(a[..., 4:], b[..., 4:]) and relative(left, b[..., :4]) > 1e-3
