"""Editors with other packs' windows that slide over the latent and tiles that share a forward.

The stand-ins here act as Sliding Window Guidance (sd-perturbed-attention) and Tiled Diffusion do.
"""
from dataclasses import dataclass

import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from palimpsest.attention.masactrl import MutualSelfAttention
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Rows, Site, mask_at, window
from palimpsest.editing.word_maps import on_whole_grid
from palimpsest.host.batch import TILES
from palimpsest.host.tiles import area_of, cut
from palimpsest.host.unet import resolutions
from palimpsest.host.unet_inputs import with_added

import nodes as host
from editors import EDITORS, FAMILIES
from watching import assert_close, case, differ, near

SIDE, TILE = 16, 10


def places(x):
    """The (top, left) of tiles that cover x."""
    return [(y, left) for y in (0, x.shape[-2] - TILE) for left in (0, x.shape[-1] - TILE)]


def sliding(model):
    """Guides away from the prediction of the windows alone."""
    def after_cfg(args):
        x, total = args["input"], torch.zeros_like(args["input"])
        seen = total.clone()
        for y, left in places(x):
            part = ..., slice(y, y + TILE), slice(left, left + TILE)
            x0, = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], x[part], args["sigma"],
                                                 args["model_options"])
            total[part] += x0
            seen[part] += 1
        return args["denoised"] + 2 * (args["cond_denoised"] - total / seen)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(after_cfg)
    return model


def tiled(model, together=4, shift=(0, 0), shown=lambda part: part):
    """Tiles of a latent that is moved by a shift, several per forward.

    shown: the tiles that the network sees.
    """
    def wrapper(apply, args):
        x = args["input"].roll(shift, (2, 3))
        total, seen = torch.zeros_like(x), torch.zeros_like(x)
        for first in range(0, 4, together):
            some = [(..., slice(y, y + TILE), slice(left, left + TILE))
                    for y, left in places(x)[first:first + together]]
            c = {k: v.repeat(len(some), *[1] * (v.ndim - 1)) if torch.is_tensor(v) else v for k, v in args["c"].items()}
            made = apply(shown(torch.cat([x[part] for part in some])), args["timestep"].repeat(len(some)), **c)
            for part, x0 in zip(some, made.chunk(len(some))):
                total[part] += F.interpolate(x0, (TILE, TILE))
                seen[part] += 1
        return (total / seen).roll([-s for s in shift], (2, 3))

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def family(name):
    return FAMILIES[list(EDITORS).index(name) % len(FAMILIES)]


@pytest.mark.parametrize("editor", ["mutual", "plug and play", "free prompt", "mixing"])
def test_a_tile_is_given_the_same_tile_of_the_source(editor):
    """At the source's latents with the source's prompt nothing changes. With the target everything does. Also with
    tiles that wrap around an edge, as in Spot Diffusion."""
    c = case(family(editor), size=SIDE)
    plain = tiled(c.model, 3, (5, 3))
    for prompt, same in ((c.source, True), (c.target, False)):
        edited, own = (c.predictions(m, prompt, 7.5) for m in (EDITORS[editor](c, plain), plain))
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(edited, own, strict=True))
        assert worst < 2e-5 if same else worst > 1e-3


@pytest.mark.parametrize("editor", ["swap", "mutual by words", "plug and play", "mixing", "ledits", "style aligned",
                                    "excite"])
def test_tiles_are_edited_alike_however_many_share_a_forward_and_in_either_order(editor):
    c = case(family(editor), size=SIDE)
    after = c.sample(tiled(EDITORS[editor](c)))
    assert torch.equal(after, c.sample(EDITORS[editor](c, tiled(c.model))))
    assert_close(c.sample(tiled(EDITORS[editor](c), 1)), after)
    assert differ(after, c.sample(tiled(c.model)))


@dataclass(frozen=True, eq=False)
class Noted(MutualSelfAttention):
    notes: list = None

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes.append((rows.call.x.shape[-2:], site.grid, rows.entry.get("area"), source.k))
        return super().attend(rows, site, q, k, v, source, attention)


@pytest.mark.parametrize("first", [True, False])
def test_a_sliding_window_is_given_the_same_window_of_the_source(first):
    """Of two rows, at a grid of half the latent's side."""
    c, notes = case("sd15", size=SIDE), []
    place = next(position for position, share in resolutions(c.model.model.diffusion_model).items() if share == 0.5)

    def edited(model):
        return attach(model, Noted(c.inversion, frozenset([place]), 0.0, 1.0, notes=notes))

    model = sliding(edited(c.model)) if first else edited(sliding(c.model))
    found = c.sample(model, latent=near(c, 2))
    assert differ(found, c.sample(sliding(c.model), latent=near(c, 2)))
    steps = [notes[i:i + 5] for i in range(0, len(notes), 5)]
    assert len(steps) == 3
    for (_, grid, area, whole), *windows in steps:
        assert grid == (8, 8) and area is None
        whole = whole.unflatten(1, grid)
        for (y, x), (shape, grid, area, k) in zip(places(c.latent), windows, strict=True):
            assert shape == (TILE, TILE) and grid == (5, 5) and area == (TILE, TILE, y, x)
            assert torch.equal(k, whole[:, y // 2:y // 2 + 5, x // 2:x // 2 + 5].flatten(1, 2))


def test_an_area_past_an_edge_goes_on_at_the_opposite_one():
    """Masks, features and maps of words: a tile of 4 x 6 cells on grids of half the side."""
    m = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows, site = Rows(Whole, {"area": (4, 6, 6, 4)}, 1), Site("self", ("middle", 0, 0), (2, 3), 0.5, 1)
    means = m.unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean((2, 4))[0]
    wanted = means[[3, 0]][:, [2, 3, 0]]
    torch.testing.assert_close(mask_at(m, rows, site).view(2, 3), wanted)
    torch.testing.assert_close(window(means.view(1, 16, 1), (4, 4), site.grid, rows).view(2, 3), wanted)
    placed, seen = on_whole_grid(wanted.view(1, 1, 2, 3), rows, site)
    assert seen.sum() == 6 and torch.equal(placed[0, 0], means * seen)


class Whole:
    network = None

    class run:
        shape = (1, 4, 8, 8)


def test_a_part_is_found_by_its_values():
    whole = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for area in ((3, 5, 2, 1), (8, 2, 0, 6), (4, 4, 6, 7)):
        assert area_of(cut(whole, area), whole) == area
    assert area_of(cut(whole, (3, 5, 2, 1)).flip(0), whole) is None and area_of(whole[..., :4, :4] * 1.1, whole) is None
    assert area_of(whole.repeat(1, 1, 2, 2), whole) is None  # another node may show more than the latent


def test_what_is_added_to_some_chunks_reaches_theirs_in_each_tile():
    options = {"cond_or_uncond": [0, 1], "uuids": ["target", "null"], TILES: [(4, 4, 0, 0)] * 2 + [(4, 4, 0, 4)] * 2}
    to = with_added({"transformer_options": {}}, torch.ones(1, 2, 3), takes=lambda what, chunk: chunk.uuid == "target")
    patch, = to["transformer_options"]["patches"]["attn2_patch"]
    _, _, value = patch(None, None, torch.zeros(8, 2, 3), options)
    assert value[:, 0, 0].tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("editor", ["swap", "mutual", "plug and play", "mixing", "ledits"])
def test_parts_that_are_nowhere_in_the_latent_are_refused(editor):
    """Refused at the first forward: a node that shows the network tiles of another size, or turned tiles."""
    c = case("sd15", size=SIDE)
    for shown in (lambda part: F.interpolate(part, (8, 8)), lambda part: part.flip(2)):
        for model in (EDITORS[editor](c, tiled(c.model, shown=shown)), tiled(EDITORS[editor](c), shown=shown)):
            with pytest.raises(ValueError, match="no part of the latent of 16 x 16 cells.*remove the node that tiles"):
                c.sample(model)


def test_a_tile_that_the_source_was_not_read_in_is_refused():
    """The target has an area, and the other node cuts it itself."""
    c = case("sd15", size=SIDE)
    area = host.ConditioningSetArea().append(c.target, 96, 96, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match=r"none of which is the target's area \(.*\) of \(10, 10, 0, 2\): remove"):
        c.sample(tiled(EDITORS["mutual"](c)), area)


def test_a_gradient_through_a_node_in_inference_mode_is_refused():
    c = case("sd15", size=SIDE)
    model = tiled(EDITORS["excite"](c))
    wrapper = model.model_options["model_function_wrapper"]
    model.set_model_unet_function_wrapper(torch.inference_mode()(wrapper))
    with pytest.raises(ValueError, match="inference mode, which has none: remove that node"):
        c.sample(model)
