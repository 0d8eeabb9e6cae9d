"""Where in the latent the rows of a forward lie.

The host shows the network the whole latent, or the area of a cond entry. Other packs cut it further: into a window that
slides over the latent, or into tiles that share a forward. Nothing names their areas. They are found by their values,
because a noisy latent has each value once. Areas are (height, width, y, x) in latent cells, as in the host, or of a
video (frames, height, width, frame, y, x). An area that ends past an edge continues at the opposite edge.
"""
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .batch import TILES, chunks
from .options import WrappersMP, with_wrapper


def halves(area: tuple) -> tuple:
    """(sizes, starts) of an area, one of each for a side."""
    return area[:len(area) // 2], area[len(area) // 2:]


def cut(x: Tensor, area: tuple) -> Tensor:
    """The area of the last dimensions of x."""
    sizes, starts = halves(area)
    return x.roll([-start for start in starts], [*range(-len(starts), 0)])[(..., *map(slice, sizes))]


def area_of(part: Tensor, whole: Tensor) -> tuple | None:
    """The area that part [B,C,…,h,w] is of whole [B,C,…,H,W], or None."""
    part, whole = (x.detach().flatten(1, -3) for x in (part, whole))
    corners = (whole[0] == part[0, :, :1, :1]).all(0).nonzero().tolist()
    areas = ((*part.shape[-2:], *corner) for corner in corners)
    return next((area for area in areas if torch.equal(cut(whole, area), part)), None)


def with_tiles_located(model_options: dict, call: Any) -> dict:
    """model_options whose forwards of parts of the latent name the area of each part in the option TILES. They give
    None there if some part is nowhere in the latent. call: the call of the network, an editing/call.py's."""
    return with_wrapper(model_options, WrappersMP.APPLY_MODEL, TILES, partial(_locate, call))


def _locate(call, executor, x, t, c_concat, c_crossattn, control, options, *args, **kwargs):
    if x.shape[-2:] != call.run.shape[-2:] and not _is_entrys_area(call, x, options):
        options = {**options, TILES: _areas(x, call.whole, len(options["uuids"]))}
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)


def _is_entrys_area(call, x, options) -> bool:
    """Whether a forward is of cond entries' own areas, as the host cuts them from the latent."""
    areas = [call.part(chunk).entry.get("area", ()) for chunk in chunks(options)]
    return call.whole is call.x and {halves(area)[0][-2:] for area in areas} == {tuple(x.shape[-2:])}


def _areas(x, whole, prompts) -> list | None:
    """The area of each chunk of x, or None."""
    if whole is None or len(x) % (prompts * len(whole)):
        return None
    areas = [area_of(part, whole) for part in x.split(len(whole))]
    return areas if all(areas) else None
