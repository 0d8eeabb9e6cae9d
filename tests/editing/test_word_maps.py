"""Maps of words against explicit softmax maps, and the grids where they are refined."""
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from palimpsest.editing.sites import Rows, Site
from palimpsest.editing.word_maps import refining_resolution, spread, word_maps

from explicit import DIM, HEADS, SIDE, Call, Run, attention, features, softmax_maps
from noting import PIXELS


def test_word_maps_are_the_softmax_columns_of_the_words():
    """More words than the head dimension, several tokens per word, rows of different words, and a text
    whose columns are repeated."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, HEADS * DIM, generator=generator) for n in (PIXELS, 30))
    groups = [[(i, i + 1) for i in range(0, 24, 2)], [(3,), (5, 9)]]
    site = Site("cross", ("middle", 0, 0), (4, 4), 1.0, HEADS)
    got = word_maps(attention, site, q, k.repeat(1, 2, 1), groups, 30)
    maps = softmax_maps(q, k).mean(1)
    for row, group in enumerate(groups):
        for column, positions_ in enumerate(group):
            wanted = maps[row, :, list(positions_)].sum(-1).view(4, 4)
            torch.testing.assert_close(got[row, column], wanted, rtol=1e-5, atol=1e-6)


def test_maps_are_refined_in_an_areas_window():
    """More words than the head dimension, and coarser maps of one picture for two rows."""
    maps = torch.rand(1, 11, 2, 2, generator=torch.Generator().manual_seed(3))
    q, k, _ = features(2, 0, tokens=6)
    rows, site = Rows(Call(Run()), {"area": (4, 6, 2, 0)}, 2), Site("self", ("middle", 0, 0), (2, 3), 0.5, HEADS)
    whole = F.interpolate(maps, size=(SIDE, SIDE), mode="bilinear").double()
    wanted = softmax_maps(q, k).mean(1) @ whole[..., 1:3, :3].flatten(2).transpose(1, 2)
    assert 11 > DIM
    torch.testing.assert_close(spread(attention, maps, rows, site, q, k).flatten(2), wanted.transpose(1, 2).float(),
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("behind", [0, 5])
def test_joint_maps_are_refined_by_the_pictures_own_places(behind):
    """Between words and what an edit shows of another picture."""
    maps = torch.rand(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).double()
    (q, _, _), (_, k, _) = features(2, 0), features(2, 1, tokens=3 + SIDE ** 2 + behind)
    rows = Rows(Call(Run()), {}, 2)
    site = Site("cross", ("double", 0, 0), (SIDE, SIDE), 0.5, HEADS, joint=True, beside=3)
    own = softmax_maps(q, k).mean(1)[..., 3:3 + SIDE ** 2]
    wanted = own @ maps.flatten(2).transpose(1, 2) / own.sum(-1, keepdim=True)
    torch.testing.assert_close(spread(attention, maps, rows, site, q, k).flatten(2), wanted.transpose(1, 2).float(),
                               rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("side, share, fine", [(64, 0.25, 0.5), (64, 0.5, 0.5), (64, 1.0, 1.0), (96, 0.25, 0.25),
                                               (16, 0.25, 1.0)])
def test_maps_are_refined_where_objects_have_shapes(side, share, fine):
    """SD1.5's grids: on 32² places of 64², on 24² of 96², and never on a grid coarser than that of the maps."""
    unet = {i: s for i, s in enumerate((1.0, 0.5, 0.25, 0.125))}
    with patch("palimpsest.editing.word_maps.resolutions", lambda network: unet):
        model = SimpleNamespace(model=SimpleNamespace(diffusion_model=None))
        assert refining_resolution(model, (side, side), share) == fine
