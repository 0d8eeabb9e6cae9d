"""Runs attention edits at the sites of the host's U-Net.

With softmax rows fixed, attention is linear in its values, so an edit is a rearrangement of q, k and v around whatever
function computes attention there: the host's, or another pack's patch. An edit is asked at a site, with the rows of one
target entry and the source's features; it never sees the host's batch layout and never counts calls.

Shapes at a site: q, k, v are (rows, tokens, heads · dim), as the host's to_q, to_k and to_v give them.
"""
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..host.canvas import about, log
from ..host.tiles import TILES, cut
from ..host.unet import host_attention, resolutions
from .editor import Editor

_SLOTS = {"self": "attn1", "cross": "attn2"}


@dataclass(frozen=True)
class Site:
    """Where the network is edited.

    kind: "self" or "cross" attention, or "feature" for another module.
    address: the host's name of it, (section, block, depth) of attention.
    grid: of its image tokens, (height, width).
    resolution: the grid's side over the latent's (1, 1/2, 1/4 …).
    heads: how many.
    patched: whether another node's function computes it.
    """
    kind: str
    address: tuple
    grid: tuple
    resolution: float = 1.0
    heads: int = 1
    patched: bool = False


@dataclass(frozen=True)
class Source:
    """The source's features at a site, with the rows and the window of the target that reads them.

    q, k, v: of attention, those that the edit keeps.
    feature: of another module (features.py).
    """
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    feature: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """The target rows of one forward that belong to one cond entry."""
    call: object
    entry: dict
    count: int


class AttentionEdit(Editor):
    """An edit of attention: `acts` and `attend` for the target's rows, or for those of all `roles`; `keeps` names what
    of the source's q, k, v it reads. One that only looks gives `observe` instead of `attend`. Of several the one of
    lowest `rank` is nearest to the attention itself, of equal ranks the first attached."""
    observe, rank = None, 0

    def acts(self, run, site, sigma) -> bool:
        raise NotImplementedError

    def keeps(self, run, site, sigma) -> str:
        return ""

    def attend(self, rows, site, q, k, v, source, attention):
        """The site's output for these rows. `attention(q, k, v)` is what would compute it without this edit."""
        raise NotImplementedError

    @staticmethod
    def install(model_options, edits, call):
        """model_options with every attention slot of the U-Net wrapped around the function that is in it now."""
        options = model_options.copy()
        to = options["transformer_options"] = options["transformer_options"].copy()
        replace = to["patches_replace"] = dict(to.get("patches_replace", {}))
        sites = call.run.memory(resolutions)
        if not sites:
            sites.update(resolutions(call.run.guider.inner_model.diffusion_model))
        for kind, slot in _SLOTS.items():
            slots = replace[slot] = dict(replace.get(slot, {}))
            for address, resolution in sites.items():
                inner = slots.get(address, slots.get(address[:2], host_attention))
                slots[address] = partial(_at, edits, call, (kind, address, resolution), inner)
        return options


def _at(edits, call, where, inner, q, k, v, options):
    kind, address, resolution = where
    site = Site(kind, address, tuple(options["activations_shape"][-2:]), resolution, options["n_heads"],
                inner is not host_attention)
    return (_read if call.mode == "read" else _write)(edits, call, site, inner, q, k, v, options)


def _read(edits, call, site, inner, q, k, v, options):
    parts = call.parts(options)
    for (index, *_, entry), *qkv in zip(parts, *(x.chunk(len(parts)) for x in (q, k, v))):
        wanted = "".join(edit.keeps(call.run, site, level) for edit in call.readers(index, edits)
                         for level in call.levels)
        if wanted:  # all edits are of one INVERSION
            features = {n: x for n, x in zip("qkv", qkv) if n in wanted}
            call.run.reference.keep(edits[0].inversion, call, index, site, entry.get("area"), features)
    return inner(q, k, v, options)


def _write(edits, call, site, inner, q, k, v, options):
    acting = sorted((e for e in edits if e.acts(call.run, site, call.sigma)), key=lambda e: e.rank)
    chunks = call.parts(options) if acting else []
    if not any(role in e.roles for _, _, role, _ in chunks for e in acting):
        return inner(q, k, v, options)
    count, _, height, width = options["activations_shape"]
    if site.kind == "self" and q.shape[0] * q.shape[1] != count * height * width:
        raise ValueError(f"Self-attention has {q.shape[0] * q.shape[1]} queries for {count} grids of {height} x "
                         f"{width} tokens: another node merges tokens, other ones in the source than in the target; "
                         "remove Token Merging.")
    out = []
    for (index, uuid, role, entry), *qkv in zip(chunks, *(x.chunk(len(chunks)) for x in (q, k, v))):
        here = {**options, "cond_or_uncond": [index], "uuids": [uuid], TILES: [entry.get("area")]}
        chosen = [e for e in acting if role in e.roles]
        rows = Rows(call, entry, qkv[2].shape[0])
        try:
            out.append(_chain(chosen, rows, site, _bound(inner, here))(*qkv))
        except _NothingLookedUp:
            out.append(qkv[2])
        if out[-1].shape[:2] != qkv[0].shape[:2]:
            raise ValueError(f"{site.kind.title()}-attention of the source is cut into tiles of {out[-1].shape[1]} "
                             f"tokens, the target's of {qkv[0].shape[1]}: another node cuts at random; set HyperTile's "
                             "swap_size to 1.")
        for edit in chosen:
            if edit.observe:
                plain = _bound(host_attention, here)  # in self-attention edits look up other values than are given
                edit.observe(rows, site, *qkv, plain if site.kind == "self" else _chain(chosen, rows, site, plain))
    return torch.cat(out)


class _NothingLookedUp(Exception):
    """A function gave the values as they are, as Perturbed-Attention Guidance's does: every token keeps its own,
    whatever edits would have it look up."""


def _bound(function, options):
    def attention(q, k, v):
        out = function(q, k, v, options)
        if out is v:
            raise _NothingLookedUp
        return out
    return attention


def _chain(edits, rows, site, attention):
    """attention(q, k, v) through the edits, the first attached innermost."""
    for edit in edits:
        if not edit.observe:
            attention = partial(edit.attend, rows, site, source=source_of(edit, rows, site), attention=attention)
    return attention


def require_all_rows(rows, count, what):
    """A forward of a part of the rows does not say which, and `count` pictures, masks or prompts follow each other in
    them."""
    if count > 1 and rows.count % rows.call.run.shape[0]:
        raise ValueError(f"A forward has {rows.count} of the latent's {rows.call.run.shape[0]} rows, and the editors "
                         f"have {count} {what}, one a row: another node shows the model parts of the batch in turn "
                         f"(AnimateDiff's context options); remove it, or give one of the {what} for all rows.")


def source_of(edit, rows, site) -> Source:
    """The source's features for these rows: of picture i mod B for row i, and of the entry's own window of the latent.

    What the null prompt's rows read is what the source shows under that prompt."""
    call, prompt, area = rows.call, rows.entry.get("palimpsest_prompt"), rows.entry.get("area")
    of, key = call.run.reference.kept, (id(edit.read_inversion()), prompt, site.kind, site.address)
    kept = of.get((*key, area)) or of.get((*key, None), {})
    if not kept and any(found[:4] == key for found in of):
        raise ValueError("Another node cuts the source into tiles, none of which is the target's area (height, width, "
                         f"y, x) of {area or rows.call.run.shape[-2:]}: remove that node, or what gives the target "
                         "another place.")
    if set(edit.keeps(call.run, site, call.sigma)) - kept.keys():
        raise ValueError(f"The source's features are wanted at sigma {call.sigma:.3g}, and another node skipped the "
                         "forward that shows them: put EasyCache or its like before the editors, or remove it.")

    if kept:
        require_all_rows(rows, kept["pictures"], "pictures of the INVERSION")

    def seen(name):
        if name not in kept:
            return None
        x = kept[name].unflatten(0, (len(kept["levels"]), -1))[kept["levels"].index(call.sigma)]
        of_text = site.kind == "cross" and name != "q"
        if kept["grid"] != site.grid and not of_text:
            x = window(x, kept["grid"], site.grid, rows)
        count = rows.count * x.shape[0] // kept["pictures"]  # another pack may cut q into tiles, rows of their own
        return x.expand(count, -1, -1) if x.shape[0] == 1 else repeat_to_batch_size(x, count)

    return Source(*map(seen, "qkvf"))


def window(x, full, grid, rows):
    """The tokens of an area's window, from the tokens of the whole grid. Areas are (height, width, y, x) in latent
    units."""
    if x.shape[1] != math.prod(full):
        raise ValueError(f"The source's self-attention is cut into tiles of {x.shape[1]} tokens, the target has an "
                         f"area of {grid[0]} x {grid[1]} of its {full[0]} x {full[1]} tokens: remove HyperTile, or the "
                         "area.")
    area, latent = rows.entry["area"], rows.call.run.shape[-2:]
    starts = [round(at * whole / side) for at, whole, side in zip(area[2:], full, latent)]
    inside = [at + extent <= side for extent, at, side in zip(area[:2], area[2:], latent)]
    starts = [min(at, whole - part) if within else at for at, within, whole, part in zip(starts, inside, full, grid)]
    return cut(x.unflatten(1, full).movedim(-1, 1), (*grid, *starts)).flatten(2).transpose(1, 2)


def in_tiles(edit, rows, site, q) -> bool:
    """Whether another node cut q into tiles, whose tokens a mask of the grid does not know; said once a run."""
    tiles = q.shape[1] != site.grid[0] * site.grid[1]
    if tiles and not rows.call.run.memory(edit).setdefault("tiles", False):
        rows.call.run.memory(edit)["tiles"] = True
        with about(edit.node):
            log.warning("%s leaves its masks aside where another node cuts self-attention into tiles of %d tokens: "
                        "remove HyperTile to use them everywhere.", edit.name, q.shape[1])
    return tiles


def mask_at(mask, rows, site):
    """[B, tokens] of a mask [B, h, w] at the latent's size: its mean over each token's cells, in the entry's own
    window."""
    require_all_rows(rows, len(mask), "masks")
    if "area" in rows.entry:
        mask = cut(mask, rows.entry["area"])
    return F.adaptive_avg_pool2d(mask.float(), site.grid).flatten(1)


def mask_of_rows(mask, rows, site, like) -> Tensor:
    """[rows, tokens, 1], as `like`: what `mask_at` gives for each row."""
    return repeat_to_batch_size(mask_at(mask, rows, site), rows.count)[..., None].to(like)


def in_rows_of(q, *features) -> list[Tensor]:
    """Features [rows, tokens, channels] in as many rows as q has; another node may have cut it into tiles."""
    return [x.reshape(len(q), -1, x.shape[-1]) for x in features]
