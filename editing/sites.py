"""Edits of the network's attention, each asked at every site.

With softmax rows fixed, attention is linear in its values, so an edit is a rearrangement of q, k and v around whatever
function computes attention there: the host's, or another pack's patch. An edit is asked at a site, with the rows of one
target entry and the source's features. It never sees the host's batch layout and never counts calls.

Shapes at a site: q, k and v are (rows, tokens, heads · channels), as the host's to_q, to_k and to_v give them.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.batch import options_of, repeat_to_batch_size
from ..host.network import (
    host_attention,
    joins_words,
    knows_places,
    shape_of,
    tokens_beside,
    with_attention,
    with_longer_text,
)
from ..host.tiles import cut, halves
from .editor import Editor

if TYPE_CHECKING:
    from .call import Call
    from .run import Run

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # softmax(q kᵀ/√d) v
BESIDE = "q_beside", "k_beside", "v_beside"  # of the tokens that are looked up beside the picture's


@dataclass(frozen=True)
class Site:
    """Where the network is edited or read.

    kind: "self" or "cross" attention, "beside" for what joint attention's other tokens look up of all, "tokens" for
        what all tokens of self-attention hold, or "feature" for another module.
    address: the host's name of it, (section, block, depth) of attention.
    grid: of its image tokens, (height, width), of a video's (frames, height, width).
    resolution: the grid's side over the latent's (1, 1/2, 1/4 …).
    heads: of its attention.
    patched: whether another node's function computes it.
    joint: whether the network's attention joins words and picture: then cross-attention's keys are all tokens, the
        picture's own last.
    beside: how many of those keys stand before the picture's own.
    """
    kind: str
    address: tuple
    grid: tuple
    resolution: float = 1.0
    heads: int = 1
    patched: bool = False
    joint: bool = False
    beside: int = 0


class Source(dict[str, Tensor]):
    """The source's features for some rows, by the names under which an editor keeps them: q, k and v of attention, of
    tokens those BESIDE too, the `feature` of another module (features.py)."""

    @property
    def q(self) -> Tensor:
        return self["q"]

    @property
    def k(self) -> Tensor:
        return self["k"]

    @property
    def v(self) -> Tensor:
        return self["v"]

    @property
    def feature(self) -> Tensor:
        return self["feature"]


@dataclass(frozen=True)
class Rows:
    """Rows of one forward that belong to one cond entry.

    entry: with what `Call` adds to it.
    count: how many they are.
    """
    call: "Call"
    entry: dict
    count: int


class AttentionEditor(Editor):
    """Base of what acts or looks at sites of attention.

    words_too: whether it is asked at sites of kind "beside".
    """
    words_too: bool = False

    def acts(self, run: "Run", site: Site, sigma: float) -> bool:
        """Whether it acts on the rows of its roles here."""
        return False

    @staticmethod
    def install(model_options, edits, call):
        """model_options with every attention of the network wrapped around the function that computes it now."""
        joint = joins_words(call.network)
        sites = {at: Site(at.kind, at.address, (), resolution, joint=joint)
                 for at, resolution in call.run.sites.items()}
        observers = [e for e in edits if isinstance(e, AttentionObserver)]
        edits = [e for e in edits if not isinstance(e, AttentionObserver)]
        sharing = [e for e in edits if isinstance(e, TokenEdit)]
        words_too = [e for e in edits if e.words_too]
        beside = {at._replace(kind="beside"): replace(site, kind="beside") for at, site in sites.items()
                  if joint and at.kind == "self" and any(_wanted(edit, call, replace(site, kind="beside"))
                                                        for edit in words_too)}
        return with_attention(model_options, {
            at: partial(_around, edits, call, site) for at, site in sites.items()
            if not (joint and at.kind == "cross") or any(_wanted(edit, call, site) for edit in edits)} | {
            at: partial(_around, words_too, call, site) for at, site in beside.items()}, {
            at: partial(_held, sharing, call, replace(site, kind="tokens")) for at, site in sites.items()
            if sharing and at.kind == "self"}, {
            at: partial(_observed, observers, edits, call, site) for at, site in sites.items()
            if any(_wanted(observer, call, site) for observer in observers)})


def _wanted(edit, call, site) -> bool:
    """Whether an edit acts or reads at a site in a call."""
    if call.reads:
        return any(edit.keeps(call.run, site, level) for level in call.levels)
    return edit.acts(call.run, site, call.sigma)


class AttentionEdit(AttentionEditor):
    """An edit of attention.

    rank: of several edits at a site the one of lowest rank is nearest to the attention itself, of equal ranks the first
        attached.
    revalues: whether it puts values of its own in place of those given. Observers, who give theirs, do without it.
    in_maps: whether observers see the picture look up what this edit of self-attention shows it beside its own.
    """
    rank: float = 0
    revalues: bool = False
    in_maps: bool = False

    def attend(self, rows: Rows, site: Site, q: Tensor, k: Tensor, v: Tensor, source: Source,
               attention: Attend) -> Tensor:
        """The site's output for these rows. `attention(q, k, v)` is what would compute it without this edit."""
        return attention(q, k, v)


class TokenEdit(AttentionEditor):
    """An edit of what all tokens of self-attention hold, words' too where they are joined, at sites of kind "tokens".
    Edits of another kind see its result."""

    def held(self, rows: Rows, site: Site, own: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
        """What the tokens of these rows hold, of what they hold without this edit: q, k and v of the picture's tokens,
        and BESIDE."""
        return own


class AttentionObserver(AttentionEditor):
    """Looks at attention and leaves it as it is. In joint attention it is asked at sites of cross-attention alone."""

    def observe(self, rows: Rows, site: Site, q: Tensor, k: Tensor, v: Tensor, attention: Attend):
        """What a site is given for these rows, before edits and once, however often these compute it. `attention(q, k,
        v)` computes it, with other values if wanted, and as edits of cross-attention would."""
        raise NotImplementedError


def keep_features(edits, call: "Call", site: Site, options: dict, **features: Tensor):
    """Keeps, of a call that reads the source, those features of a forward at a site that the edits want. Each is (rows,
    tokens, channels)."""
    for part, *own in call.split(options, *features.values()):
        wanted = {name for edit in call.readers(part.index, edits) for level in call.levels
                  for name in edit.keeps(call.run, site, level)}
        if wanted:
            # a view would keep all that the network made beside it, on Flux seven times as much
            call.run.reference.keep(call, part, site, {n: x.clone() if x.untyped_storage().nbytes() > x.nbytes else x
                                                       for n, x in zip(features, own) if n in wanted})


def _held(edits, call, site, q, k, v, beside, options):
    """(q, k, v, beside) of all tokens with the edits in them; None where none acts."""
    _, grid, heads = shape_of(options)
    seen = replace(site, grid=grid, heads=heads, beside=beside[0].shape[1])
    features = dict(zip(("q", "k", "v", *BESIDE), (q, k, v, *beside)))
    if call.reads:
        return keep_features(edits, call, seen, options, **features)
    acting = [e for e in edits if e.acts(call.run, seen, call.sigma)]
    parts = call.parts(options) if acting else []
    if not any(part.role in e.roles for part in parts for e in acting):
        return None
    _require_all_tokens(seen, q, options)
    made = []
    for part, *own in call.split(options, *features.values()):
        rows, held = Rows(call, part.entry, len(own[2])), dict(zip(features, own))
        for edit in (e for e in acting if part.role in e.roles):
            held = edit.held(rows, seen, held, source_of(edit, rows, seen))
        made.append([held[name] for name in features])
    q, k, v, *beside = (torch.cat(x) for x in zip(*made))
    return q, k, v, beside


def _around(edits, call, site, inner):
    """What computes attention at a site, around the function that did so before."""
    def attention(q, k, v, options):
        _, grid, heads = shape_of(options)
        seen = Site(site.kind, site.address, grid, site.resolution, heads,
                    inner is not host_attention and not knows_places(call.network), site.joint,
                    tokens_beside(options))
        if call.reads:
            keep_features(edits, call, seen, options, q=q, k=k, v=v)
            return inner(q, k, v, options)
        return _edited(edits, call, seen, inner, q, k, v, options)
    return attention


def _edited(edits, call, site, inner, q, k, v, options) -> Tensor:
    acting = [e for e in edits if e.acts(call.run, site, call.sigma)]
    parts = call.parts(options) if acting else []
    if not any(part.role in e.roles for part in parts for e in acting):
        return inner(q, k, v, options)
    _require_all_tokens(site, q, options)
    out = []
    for part, own_q, own_k, own_v in call.split(options, q, k, v):
        rows, chosen = Rows(call, part.entry, len(own_v)), _chosen(acting, call, site, part)
        try:
            out.append(_chain(chosen, rows, site, _bound(inner, options_of(options, part.chunk)))(own_q, own_k, own_v))
        except _NothingLookedUp:
            out.append(own_v)
        if out[-1].shape[:2] != own_q.shape[:2]:
            raise ValueError(f"{site.kind.title()}-attention of the source is cut into tiles of {out[-1].shape[1]} "
                             f"tokens, the target's of {own_q.shape[1]}: another node cuts at random; set HyperTile's "
                             "swap_size to 1.")
    return torch.cat(out)


def _observed(observers, edits, call, site, inner, q, k, v, options):
    """Shows observers what a site is given. `inner` is what computes a transformer's attention without edits."""
    _, grid, heads = shape_of(options)
    site = replace(site, grid=grid, heads=heads, beside=tokens_beside(options))
    _require_all_tokens(site, q, options)
    plain = inner if knows_places(call.network) else host_attention
    for part, *own in call.split(options, q, k, v):
        rows, attention = Rows(call, part.entry, len(own[2])), _bound(plain, options_of(options, part.chunk))
        if site.joint:
            within = replace(site, kind="self")
            shown = [e for e in _chosen(edits, call, within, part) if e.in_maps]
            own = _chain(shown, rows, within, lambda *given: given)(*own)
        if site.kind == "cross":
            attention = _chain([e for e in _chosen(edits, call, site, part) if not e.revalues], rows, site, attention)
        for observer in observers:
            if part.role in observer.roles and observer.acts(call.run, site, call.sigma):
                observer.observe(rows, site, *own, attention)


def _chosen(edits, call, site, part) -> list:
    """Those of the edits that act on a part's rows at a site, the nearest to the attention first."""
    acting = (e for e in edits if isinstance(e, AttentionEdit) and part.role in e.roles)
    return sorted((e for e in acting if e.acts(call.run, site, call.sigma)), key=lambda e: e.rank)


def others_inside(edit: AttentionEdit, rows: Rows, site: Site) -> bool:
    """Whether what an edit is given to compute attention may hold other edits."""
    run, sigma = rows.call.run, rows.call.sigma
    others = [e for e in run.editors if isinstance(e, AttentionEdit)]
    nearer = takewhile(lambda e: e is not edit, sorted(others, key=lambda e: e.rank))
    return any(e.acts(run, site, sigma) for e in nearer) or site.joint and any(
        e.acts(run, replace(site, kind="cross"), sigma) for e in others)


def _require_all_tokens(site, q, options):
    """ValueError where another node merges tokens."""
    rows, grid, _ = shape_of(options)
    if site.kind in ("self", "tokens") and q.shape[0] * q.shape[1] != rows * math.prod(grid):
        raise ValueError(f"Self-attention has {q.shape[0] * q.shape[1]} queries for {rows} grids of "
                         f"{' x '.join(map(str, grid))} tokens: another node merges tokens, other ones in the "
                         "source than in the target; remove Token Merging.")


class _NothingLookedUp(Exception):
    """A function gave the values as they are, as Perturbed-Attention Guidance's does: every token keeps its own,
    whatever edits would have it look up."""


def _bound(function, options) -> Attend:
    def attention(q, k, v):
        out = function(q, k, v, options)
        if out is v:
            raise _NothingLookedUp
        return out
    return attention


def _chain(edits, rows, site, attention) -> Attend:
    """attention(q, k, v) through the edits, the first of them innermost."""
    for edit in edits:
        attention = partial(edit.attend, rows, site, source=source_of(edit, rows, site), attention=attention)
    return attention


def require_all_rows(rows: Rows, count: int, what: str):
    """ValueError where a forward has a part of the rows and does not say which, and `count` pictures, masks or prompts
    follow each other in them."""
    if count > 1 and rows.count % rows.call.run.shape[0]:
        raise ValueError(f"A forward has {rows.count} of the latent's {rows.call.run.shape[0]} rows, and the editors "
                         f"have {count} {what}, one a row: another node shows the model parts of the batch in turn "
                         f"(AnimateDiff's context options); remove it, or give one of the {what} for all rows.")


def source_of(editor: Editor, rows: Rows, site: Site) -> Source:
    """The source's features that an editor keeps, for these rows: of picture i mod B for row i, and of the entry's own
    window of the latent. Rows of the null prompt read what the source shows under that prompt."""
    call, names = rows.call, set(editor.keeps(rows.call.run, site, rows.call.sigma))
    if not names:
        return Source()
    kept = call.run.reference.kept_for(editor, rows, site)
    if names - kept.features.keys():
        raise ValueError(f"The source's features are wanted at sigma {call.sigma:.3g}, and another node skipped the "
                         "forward that shows them: remove that node (TeaCache or its like), or take ComfyUI's own "
                         "EasyCache.")
    require_all_rows(rows, kept.pictures, "pictures of the INVERSION")

    def seen(name):
        x = kept.features[name].unflatten(0, (1 + max(kept.levels.values()), -1))[kept.levels[call.sigma]]
        # the keys and values of cross-attention are the text's, and what is beside the picture has no grid
        if kept.grid != site.grid and (site.kind != "cross" or name == "q") and name not in BESIDE:
            x = window(x, kept.grid, site.grid, rows)
        if name in ("q", "k") and site.kind != "cross":
            x = with_longer_text(call.network, x, site.beside - kept.beside)
        count = rows.count * x.shape[0] // kept.pictures  # another pack may cut q into tiles, rows of their own
        return x.expand(count, -1, -1) if x.shape[0] == 1 else repeat_to_batch_size(x, count)

    return Source({name: seen(name) for name in names})


def window(x: Tensor, whole: tuple, grid: tuple, rows: Rows) -> Tensor:
    """The tokens of the rows' area, on its own grid, from the tokens of the whole grid."""
    if knows_places(rows.call.network):
        part, all_ = (" x ".join(map(str, sides)) for sides in (grid, whole))
        raise ValueError(f"The target has an area of {part} of the source's {all_} tokens, and this MODEL's attention "
                         "knows each token's place in the whole: remove Conditioning (Set Area).")
    if x.shape[1] != math.prod(whole):
        raise ValueError(f"The source's self-attention is cut into tiles of {x.shape[1]} tokens, the target has an "
                         f"area of {grid[0]} x {grid[1]} of its {whole[0]} x {whole[1]} tokens: remove HyperTile, or "
                         "the area.")
    area, latent = rows.entry["area"], rows.call.run.shape[-2:]  # (height, width, y, x) in latent cells
    starts = [round(start * most / side) for start, most, side in zip(area[2:], whole, latent)]
    inside = [start + extent <= side for extent, start, side in zip(area[:2], area[2:], latent)]
    starts = [min(start, most - n) if within else start
              for start, within, most, n in zip(starts, inside, whole, grid)]
    return cut(x.unflatten(1, whole).movedim(-1, 1), (*grid, *starts)).flatten(2).transpose(1, 2)


def in_tiles(editor: Editor, rows: Rows, site: Site, q: Tensor) -> bool:
    """Whether another node cut q into tiles, whose tokens a mask of the grid does not know. Warns once a run."""
    tiles = q.shape[1] != math.prod(site.grid)
    if tiles:
        rows.call.run.warn_once(editor, "%s leaves its masks aside where another node cuts self-attention into tiles "
                                        "of %d tokens: remove HyperTile to use them everywhere.",
                                editor.name, q.shape[1])
    return tiles


def mask_at(mask: Tensor, rows: Rows, site: Site) -> Tensor:
    """[masks, tokens]: the mean over each token's cells of masks [masks, h, w] at the latent's size, in the entry's
    window. Masks [masks, T, h, w] have frames of their own."""
    require_all_rows(rows, len(mask), "masks")
    if "area" in rows.entry:
        sizes, starts = halves(rows.entry["area"])
        sides = mask.ndim - 1  # a mask without frames has two
        mask = cut(mask, (*sizes[-sides:], *starts[-sides:]))
    frames = math.prod(site.grid[:-2])
    if mask.ndim == 3:
        return _pooled(mask.float(), site.grid[-2:]).flatten(1).repeat(1, frames)  # the same in all frames
    cells = F.adaptive_avg_pool3d(mask.float()[:, None], (frames, mask.shape[-2], mask.shape[-1]))[:, 0]
    return _pooled(cells.flatten(0, 1), site.grid[-2:]).view(len(mask), -1)


def _pooled(mask: Tensor, grid: tuple) -> Tensor:
    """The mean of [masks, h, w] over each token's cells, a power of two on a side. The last token of a row has fewer
    where the sides are odd. Another node's grids have equal parts."""
    sides = [2 ** max(0, math.ceil(math.log2(side / tokens))) for side, tokens in zip(mask.shape[-2:], grid)]
    if [math.ceil(side / own) for side, own in zip(mask.shape[-2:], sides)] == [*grid]:
        return F.avg_pool2d(mask, sides, ceil_mode=True)
    return F.adaptive_avg_pool2d(mask, grid)


def mask_of_rows(mask: Tensor, rows: Rows, site: Site, like: Tensor) -> Tensor:
    """[rows, tokens, 1], as `like`: what `mask_at` gives for each row."""
    return repeat_to_batch_size(mask_at(mask, rows, site), rows.count)[..., None].to(like)


def in_rows_of(q: Tensor, *features: Tensor) -> list[Tensor]:
    """Features [rows, tokens, channels] in as many rows as q has; another node may have cut it into tiles."""
    return [x.reshape(len(q), -1, x.shape[-1]) for x in features]
