"""Cross-attention maps of words, in a run or of a picture.

A word's map at a site is attention on one-hot values, which are 1 on the word's tokens: softmax(q k^T) · 1[word]. So
fused kernels compute it, and nothing of size heads × pixels × tokens is made. Maps are means over heads, over the sites
of one resolution and over steps. Where a prompt is sampled in an area, its maps lie in that area; a place has the mean
of what was seen there.

A word's map is coarse and spotty. A refined map gives each place what the places have that it attends to in
self-attention, S·M, one step of a random walk (Dataset Diffusion, Nguyen et al., NeurIPS 2023, arXiv:2309.14303, takes
powers of S). This is attention again, with the maps so far as values, so no map of pixels by pixels is made. One step
only: more of them join objects that look alike.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size

from ..host.tokens import require_columns
from ..host.unet import resolutions
from .masks import word_mask
from .sites import AttentionEdit, Site, in_tiles, window

ENOUGH = 24 ** 2  # places of a grid on which objects have shapes


def one_hot(groups, tokens, like):
    """[rows, tokens, groups] values that are 1 in column g on the positions of group g of that row."""
    values = torch.zeros(len(groups), tokens, max(map(len, groups)))
    for row, named in enumerate(groups):
        for column, group in enumerate(named):
            values[row, list(group), column] = 1
    return values.to(like)


def looked_up(attention, site: Site, q, k, values):
    """[rows, columns, h, w]: the mean over heads of what each place finds of values [rows, keys, columns]."""
    dim, parts = q.shape[-1] // site.heads, []
    for part in values.split(dim, -1):
        padded = F.pad(part, (0, dim - part.shape[-1]))[:, :, None].expand(-1, -1, site.heads, -1).flatten(2)
        out = attention(q, k, padded).unflatten(-1, (site.heads, dim))[..., :part.shape[-1]]
        parts.append(out.float().mean(2).transpose(1, 2).unflatten(2, site.grid))
    return torch.cat(parts, 1)


def word_maps(attention, site: Site, q, k, groups, length):
    """[rows, groups, h, w]: the mean over heads of the probability each place gives to a group of token positions.

    attention(q, k, v) computes softmax(q k^T) v; groups: for each row a list of tuples of positions below `length`, the
    text's own length (the host may repeat its columns in k)."""
    return looked_up(attention, site, q, k, one_hot(groups, length, q).repeat(1, k.shape[1] // length, 1))


def spread(attention, maps, rows, site, q, k):
    """[rows, groups, h, w]: S·M of maps M [B, groups, h', w'] of the whole latent, row i mod B for row i."""
    full = _full(rows, site)
    size = maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)  # so that the compute dtype holds them
    values = F.interpolate(maps / size, size=full, mode="bilinear").flatten(2).transpose(1, 2)
    values, size = (repeat_to_batch_size(t, rows.count) for t in (values, size))
    if "area" in rows.entry:
        values = window(values, full, site.grid, rows)
    return size * looked_up(attention, site, q, k, values.to(q))


def _full(rows, site):
    return tuple(math.ceil(side * site.resolution) for side in rows.call.run.shape[-2:])


def on_whole_grid(maps, rows, site):
    """An area's maps [rows, groups, h, w] on the grid of the whole latent, and how often each of its places was
    seen."""
    full = _full(rows, site)
    cells = window(torch.arange(math.prod(full), device=maps.device).view(1, -1, 1), full, site.grid, rows).flatten()
    whole, seen = maps.new_zeros(*maps.shape[:2], math.prod(full)), maps.new_zeros(math.prod(full))
    whole[..., cells], seen[cells] = maps.flatten(2), 1
    return whole.unflatten(2, full), seen.view(full)


@dataclass(frozen=True, eq=False)
class WordMaps(AttentionEdit):
    """Gathers the maps of words of the prompt being sampled, at the sites of one resolution, into the run's memory;
    with `fine`, the share of a finer grid, there also what self-attention makes of those of the steps before.

    words(prompts) names the Words wanted of each of several prompts' Tokens; needed: whether a run without Tokens is an
    error. `mean(run)` and `refined(run)` are [rows, words, h, w], 0 outside of all areas, or None before the first."""
    words: object
    resolution: float
    fine: "float | None" = None
    needed: bool = True
    follows, name = True, "Refining words' maps"

    def begin(self, run):
        known = sampled_tokens(run)
        if not known and self.needed:
            raise ValueError("Words are to be found in the sampled prompt, but it carries no words: connect Prompt "
                             "Edit's target CONDITIONING to the sampler.")
        for prompts in known:
            self.words(prompts)

    def before(self, run, x, sigma):
        if self.fine and "maps" in run.memory(self):
            run.memory(self)["known"] = self.mean(run)
        return x

    def acts(self, run, site, sigma):
        return site.resolution == (self.resolution if site.kind == "cross" else self.fine)

    def observe(self, rows, site, q, k, v, attention):
        tokens = rows.entry.get("palimpsest_tokens")
        if tokens is None:
            return
        memory = rows.call.run.memory(self)
        if site.kind == "self":
            if "known" in memory and memory["known"].numel() and not in_tiles(self, rows, site, q):
                self._add(memory, "refined", spread(attention, memory["known"], rows, site, q, k), rows, site)
            return
        if id(tokens) not in memory:
            memory[id(tokens)] = [[word.positions for word in words] for words in self.words(tokens)]
        groups = [memory[id(tokens)][i % len(tokens)] for i in range(rows.count)]
        self._add(memory, "maps", word_maps(attention, site, q, k, groups, len(tokens[0].ids)), rows, site)

    @staticmethod
    def _add(memory, kind, maps, rows, site):
        maps, seen = on_whole_grid(maps, rows, site) if "area" in rows.entry else (maps, 1)
        total, count = memory.get(kind, (0, 0))
        memory[kind] = total + maps, count + seen

    def mean(self, run, kind="maps"):
        if kind not in run.memory(self):
            return None
        total, count = run.memory(self)[kind]
        return total / torch.as_tensor(count).clamp(min=1)

    def refined(self, run):
        return self.mean(run, "refined")

    def mask(self, run, threshold, grow=True):
        """[rows, h, w] of `word_mask`, of all words together; in the first step, which has no refined maps yet, of
        those it has."""
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


def sampled_tokens(run) -> list:
    """The tokens of each sampled entry that carries them, of all its columns."""
    found = [e for e in run.targets() if "palimpsest_tokens" in e]
    for entry in found:
        require_columns(entry["palimpsest_tokens"], entry["model_conds"]["c_crossattn"].cond)
    return [e["palimpsest_tokens"] for e in found]
