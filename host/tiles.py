"""Where in the latent the rows of a forward lie.

The host shows the network the latent whole, or the area of a cond entry. Other packs cut further: a window that slides
over the latent, tiles of it that share a forward. Nothing names their places, so they are found by their values: a
noisy latent has each once. Areas are (height, width, y, x) in latent units, as the host's; one that ends past an edge
goes on at the opposite one.
"""
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

TILES = "palimpsest.tiles"


def keys(options) -> list:
    """(`cond_or_uncond` index, uuid) of each part of a forward's rows, in their order: those of a tile stand
    together."""
    once = list(zip(options["cond_or_uncond"], options["uuids"]))
    return once * (len(options.get(TILES) or once) // len(once))


def cut(x, area):
    """The area of the last two dimensions of x."""
    height, width, top, left = area
    return x.roll((-top, -left), (-2, -1))[..., :height, :width]


def found(part, whole):
    """The area that part [B,C,…,h,w] is of whole [B,C,…,H,W], or None."""
    part, whole = (x.detach().flatten(1, -3) for x in (part, whole))
    corners = (whole[0] == part[0, :, :1, :1]).all(0).nonzero().tolist()
    areas = ((*part.shape[-2:], *corner) for corner in corners)
    return next((area for area in areas if torch.equal(cut(whole, area), part)), None)


def locating(model_options, call) -> dict:
    """model_options whose forwards of parts of the latent name the area of each part in the option TILES, or give None
    there if some part is nowhere in it."""
    to = model_options["transformer_options"]
    wrappers = to.get("wrappers", {})
    around = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), TILES: [partial(_locate, call)]}
    return {**model_options, "transformer_options": {**to, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: around}}}


def _locate(call, executor, x, t, c_concat, c_crossattn, control, options, *args, **kwargs):
    if x.shape[-2:] != call.run.shape[-2:] and not _is_area(call, x, options):
        options = {**options, TILES: _tiles(x, call.whole, len(options["uuids"]))}
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


def _is_area(call, x, options) -> bool:
    """Whether a forward is of cond entries' own areas, as the host cuts them from the latent."""
    sizes = {call.chunk(*key)[1].get("area", ())[:2] for key in keys(options)}
    return call.whole is call.x and sizes == {tuple(x.shape[-2:])}


def _tiles(x, whole, chunks):
    """The area of each part of x, or None."""
    if whole is None or len(x) % (chunks * len(whole)):
        return None
    areas = [found(part, whole) for part in x.split(len(whole))]
    return areas if all(areas) else None
