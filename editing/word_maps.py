"""Cross-attention maps of words, in a run or of a picture.

A word's map at a site is attention on one-hot values, which are 1 on the word's tokens: softmax(q kᵀ/√d) · 1[word]. So
fused kernels compute it, and nothing of size heads × cells × tokens is made. Maps are means over heads, over the sites
of one resolution and over steps. Where a prompt is sampled in an area, its maps lie in that area. A cell then has the
mean of what it was seen with.

A word's map is coarse and spotty. A refined map gives each cell what the cells have that it attends to in
self-attention, S·M, one step of a random walk (Dataset Diffusion, Nguyen et al., NeurIPS 2023, arXiv:2309.14303, takes
powers of S). This is attention again, with the maps so far as values, so no map of cells by cells is made. One step
only: more of them join objects that look alike. Where attention joins words and picture, S is what it gives to the
picture's tokens, over their sum.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.network import resolutions, text_runs, word_layers
from ..host.tiles import halves
from ..host.tokens import Tokens, Word, require_columns
from .masks import word_mask
from .sites import Attend, AttentionObserver, Rows, Site, in_tiles, window

ENOUGH = 24 ** 2  # cells of a grid on which objects have shapes


def one_hot(groups: list, tokens: int, like: Tensor) -> Tensor:
    """[rows, tokens, groups] values that are 1 in column g on the positions of group g of that row."""
    values = torch.zeros(len(groups), tokens, max(map(len, groups)))
    for row, named in enumerate(groups):
        for column, group in enumerate(named):
            values[row, list(group), column] = 1
    return values.to(like)


def looked_up(attention: Attend, site: Site, q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    """[rows, columns, h, w]: the mean over heads of what each cell finds of values [rows, keys, columns]."""
    dim, parts = q.shape[-1] // site.heads, []
    for part in values.split(dim, -1):
        padded = F.pad(part, (0, dim - part.shape[-1]))[:, :, None].expand(-1, -1, site.heads, -1).flatten(2)
        out = attention(q, k, padded).unflatten(-1, (site.heads, dim))[..., :part.shape[-1]]
        maps = out.float().mean(2).transpose(1, 2).unflatten(2, site.grid)
        parts.append(maps.flatten(2, -3).mean(2) if maps.ndim > 4 else maps)  # over a video's frames
    return torch.cat(parts, 1)


def over_keys(values: Tensor, network, keys: int, fill: float = 0) -> Tensor:
    """[rows, keys, channels]: values [rows, columns, channels] of a prompt's columns, at the keys of cross-attention
    that are theirs. Other keys have `fill`."""
    out = values.new_full((values.shape[0], keys, values.shape[2]), fill)
    for key, column, count in text_runs(network, values.shape[1], keys):
        out[:, key:key + count] = values[:, column:column + count]
    return out


def moved(mapped, v: Tensor, keys: int, network) -> Tensor:
    """[rows, keys, channels]: M V at the source's keys, of values v at the target's. mapped: M [rows, source's columns,
    target's]. A text's columns may stand there several times; other keys have 0."""
    out = v.new_zeros(v.shape[0], keys, v.shape[2])
    runs = zip(text_runs(network, mapped.shape[1], keys), text_runs(network, mapped.shape[2], v.shape[1]))
    for (key, column, count), (target_key, target_column, target_count) in runs:
        part = mapped[:, column:column + count, target_column:target_column + target_count]
        out[:, key:key + count] = part @ v[:, target_key:target_key + target_count]
    return out


def word_maps(attention: Attend, site: Site, q: Tensor, k: Tensor, groups: list, columns: int,
              network=None) -> Tensor:
    """[rows, groups, h, w]: the mean over heads of the probability that each cell gives to a group of columns.

    groups: for each row, a list of tuples of columns.
    columns: how many the text has.
    network: the host's, where it is no U-Net.
    """
    return looked_up(attention, site, q, k, over_keys(one_hot(groups, columns, q), network, k.shape[1]))


def spread(attention: Attend, maps: Tensor, rows: Rows, site: Site, q: Tensor, k: Tensor) -> Tensor:
    """[rows, groups, h, w]: S·M of maps M [B, groups, h', w'] of the whole latent, row i mod B for row i."""
    whole = _whole_grid(rows, site)
    size = maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)  # so that the compute dtype holds them
    values = F.interpolate(maps / size, size=whole, mode="bilinear").flatten(2).transpose(1, 2)
    values = values.repeat(1, math.prod(site.grid[:-2]), 1)  # the same in all frames
    values, size = (repeat_to_batch_size(t, rows.count) for t in (values, size))
    if "area" in rows.entry:
        values = window(values, whole, site.grid, rows)
    if not site.joint:
        return size * looked_up(attention, site, q, k, values.to(q))
    values = torch.cat([values, torch.ones_like(values[..., :1])], 2)
    behind = k.shape[1] - site.beside - values.shape[1]  # those of another picture that an edit shows
    found = looked_up(attention, site, q, k, F.pad(values, (0, 0, site.beside, behind)).to(q))
    return size * found[:, :-1] / found[:, -1:].clamp(min=1e-6)


def _grid(sides, site) -> tuple:
    """The site's grid (height, width) for a latent of these sides, where no other node shrinks it."""
    return tuple(math.ceil(side * site.resolution) for side in sides[-2:])


def _whole_grid(rows, site) -> tuple:
    """The same for the whole latent, as much smaller as Deep Shrink makes the grid of these rows."""
    whole = rows.call.run.shape[-2:]
    shown = halves(rows.entry.get("area", ()))[0] or whole
    return tuple(round(most * have / own) for most, have, own in zip(
        _grid(whole, site), site.grid[-2:], _grid(shown, site)))


def on_whole_grid(maps: Tensor, rows: Rows, site: Site) -> tuple[Tensor, Tensor]:
    """Maps [rows, groups, h, w] of some rows on the grid of the whole latent, and how often each of its cells was
    seen."""
    seen = maps.new_ones(maps.shape[-2:])
    if "area" in rows.entry:
        whole = _whole_grid(rows, site)
        numbers = torch.arange(math.prod(whole), device=maps.device).view(1, -1, 1)
        cells = window(numbers, whole, site.grid, rows).flatten()
        placed, seen = maps.new_zeros(*maps.shape[:2], math.prod(whole)), maps.new_zeros(math.prod(whole))
        placed[..., cells], seen[cells] = maps.flatten(2), 1
        maps, seen = placed.unflatten(2, whole), seen.view(whole)
    size = _grid(rows.call.run.shape, site)
    if maps.shape[-2:] != size:
        maps, seen = F.interpolate(maps, size), F.interpolate(seen[None, None], size)[0, 0]
    return maps, seen


@dataclass
class Mean:
    """The mean of maps [rows, words, h, w], each cell's over how often it was seen."""
    total: Tensor | float = 0
    count: Tensor | float = 0

    def add(self, maps: Tensor, rows: Rows, site: Site):
        maps, seen = on_whole_grid(maps, rows, site)
        self.total, self.count = self.total + maps, self.count + seen

    @property
    def value(self) -> Tensor | None:
        """0 where nothing was seen; None before the first."""
        if not isinstance(self.total, Tensor):
            return None
        return self.total / torch.as_tensor(self.count).clamp(min=1)


@dataclass
class Gathered:
    """What a WordMaps gathers in a run.

    maps, refined: the means so far.
    known: the maps of the steps before, which self-attention refines.
    positions: of the words' tokens, by the id of the prompts.
    """
    maps: Mean = field(default_factory=Mean)
    refined: Mean = field(default_factory=Mean)
    known: Tensor | None = None
    positions: dict = field(default_factory=dict)

    def start_again(self, known: Tensor):
        """Drops the means; the next step refines these maps."""
        self.maps, self.refined, self.known = Mean(), Mean(), known


@dataclass(frozen=True, eq=False)
class WordMaps(AttentionObserver):
    """Gathers the maps of words of the prompt being sampled.

    words: words(prompts) names the words wanted of each of several prompts.
    resolution: of the sites whose maps it gathers.
    fine: the resolution at which self-attention refines the maps of the steps before, or None.
    layers: the addresses of the sites, or None for all of the resolution.
    needed: whether a run whose prompts carry no words is an error.
    """
    State = Gathered
    words: Callable[[Sequence[Tokens]], list[list[Word]]]
    resolution: float
    fine: float | None = None
    layers: frozenset | None = None
    needed: bool = True
    follows, name = True, "Reading words' maps"

    def begin(self, run):
        known = sampled_tokens(run)
        if not known and self.needed:
            raise ValueError("Words are to be found in the sampled prompt, but it carries no words: connect Prompt "
                             "Edit's target CONDITIONING to the sampler.")
        for prompts in known:
            self.words(prompts)

    def hands_on(self, run, sigma):
        return "the maps so far"

    def before(self, run, x, sigma):
        known = self.mean(run) if self.fine else None
        if known is not None:
            run.state(self).known = known
        return x

    def acts(self, run, site, sigma):
        if self.layers is not None and site.address not in self.layers or site.joint and site.kind == "self":
            return False
        return site.resolution == (self.resolution if site.kind == "cross" else self.fine)

    def observe(self, rows, site, q, k, v, attention):
        tokens, state = rows.entry.get("palimpsest_tokens"), rows.call.run.state(self)
        if tokens is None:
            return
        if site.kind == "self" or site.joint and self.fine:
            if state.known is not None and state.known.numel() and not in_tiles(self, rows, site, q):
                state.refined.add(spread(attention, state.known, rows, site, q, k), rows, site)
        if site.kind == "self":
            return
        if id(tokens) not in state.positions:
            state.positions[id(tokens)] = [[word.positions for word in words] for words in self.words(tokens)]
        groups = [state.positions[id(tokens)][i % len(tokens)] for i in range(rows.count)]
        maps = word_maps(attention, site, q, k, groups, len(tokens[0].ids), rows.call.network)
        state.maps.add(maps, rows, site)

    def mean(self, run) -> Tensor | None:
        """[rows, words, h, w] of this run so far, 0 outside of all areas, or None before the first."""
        return run.state(self).maps.value

    def refined(self, run) -> Tensor | None:
        """The same of the refined maps, on their own grid."""
        return run.state(self).refined.value

    def mask(self, run, threshold, grow=True) -> Tensor | None:
        """[rows, h, w] of `word_mask`, of all words together. The first step has no refined maps yet
        and uses the plain ones."""
        maps, refined = self.mean(run), self.refined(run)
        if maps is None:
            return None
        maps = (maps if refined is None else refined).sum(1)
        return word_mask(maps, run.shape[-2:], threshold, refined is not None, grow and self.fine is None)


def nearest_resolution(model, resolution) -> float:
    """The finest resolution of cross-attention up to this one, or else the coarsest."""
    known = sorted(set(resolutions(model.model.diffusion_model).values()))
    return max((r for r in known if r <= resolution), default=known[0])


def refining_resolution(model, latent, resolution) -> float:
    """The resolution that refines maps of this one: the coarsest from it on whose grid has ENOUGH cells, or else the
    finest. latent: (height, width)."""
    known = sorted(r for r in set(resolutions(model.model.diffusion_model).values()) if r >= resolution)
    return next((r for r in known if math.prod(math.ceil(side * r) for side in latent) >= ENOUGH), known[-1])


def word_layers_of(model) -> frozenset | None:
    """The layers of a MODEL at which maps of words are read, or None for all of a resolution."""
    return word_layers(model.model.diffusion_model)


def text_columns(entry) -> int:
    """How many columns the text of a processed cond entry has, where `text_runs` finds them."""
    return _columns(entry, entry["model_conds"]["c_crossattn"].cond)


def source_columns(inversion) -> int:
    """The same of an INVERSION's prompt."""
    embedding, extra = inversion.conditioning[0]
    return _columns(extra, embedding)


def _columns(extra, embedding):
    tokens = extra.get("palimpsest_tokens")
    # what other encoders than CLIP's read may be filled up in the embedding
    return len(tokens[0].ids) if tokens and tokens[0].streams else embedding.shape[1]


def sampled_tokens(run) -> list:
    """The tokens of each sampled entry that carries them, of all its columns."""
    found = [e for e in run.targets() if "palimpsest_tokens" in e]
    for entry in found:
        require_columns(entry["palimpsest_tokens"], entry.get("cross_attn", entry["model_conds"]["c_crossattn"].cond),
                        entry)
    return [e["palimpsest_tokens"] for e in found]
