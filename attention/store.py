"""Cross-attention maps of words (Hertz et al. 2022, arXiv:2208.01626, section 3.1), of a picture or of the run that edits it.

A word's map at a site is attention on one-hot values, which are 1 on the word's tokens: softmax(q k^T) · 1[word]. So fused
kernels compute it and nothing of size heads × pixels × tokens is made. The maps of a picture are read along its known
trajectory with the source prompt at CFG 1. Both are means over heads, over the sites of one resolution and over steps; where
a prompt is sampled in an area, its maps lie in that area, and a place has the mean of what was seen there.

A word's map is coarse and spotty. Refined, a place takes what the places have that it attends to in self-attention, S·M, a step of
a random walk (Dataset Diffusion, Nguyen et al., NeurIPS 2023, arXiv:2309.14303, takes powers of S): attention again, with the
maps seen so far as values, so that no map of pixels by pixels is made either. One step, since more join objects that look alike.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size

from ..blending.local_blend import SourceMask, word_mask
from ..host.sampling import Solver, sample
from ..host.session import attach, require_plain, running
from ..host.tokens import sampled_tokens
from .control import AttentionEdit, Site, in_tiles, positions, window

ENOUGH = 24 ** 2  # places of a grid on which objects have shapes


@dataclass(frozen=True, eq=False)
class Attention:
    """The ATTENTION value. tokens: the source's Tokens, one a picture; steps: [S, B, words, h, w] float32 on the CPU, the
    probability a place gives to each of the words at each of the levels (σ), in the order of Tokens.named; latent: its (height,
    width); share: h / height; refined: [B, words, h', w'], their mean over steps on the finer grid `fine` / latent, or None where
    another node cuts self-attention into tiles."""
    tokens: tuple
    steps: torch.Tensor
    levels: tuple
    latent: tuple
    share: float
    fine: float
    refined: "torch.Tensor | None"

    @cached_property
    def maps(self):
        """[B, words, h, w], the mean over steps."""
        return self.steps.mean(0)

    def map(self, picture, words, refined=False):
        """[h, w]: the summed map of some words, Word values of this picture's Tokens."""
        return self.chosen(refined)[picture, self.columns(picture, words)].sum(0)

    def chosen(self, refined):
        """The maps, refined or as they are."""
        if refined and self.refined is None:
            raise ValueError("The ATTENTION has words' maps and none that self-attention refined, which another node cut into tiles: "
                             "remove HyperTile before Attention Store, or turn refine off.")
        return self.refined if refined else self.maps

    def mask(self, words, size, threshold, refined):
        """[B, h, w] of `word_mask`, of some words of each picture."""
        maps = torch.stack([self.map(i, found, refined) for i, found in enumerate(words)])
        return word_mask(maps, size, threshold, refined)

    def masks(self, words, size, threshold, refined, grow=True):
        """The SourceMask of some words of each picture: at each level of the maps so far, or the refined one at all."""
        if refined:
            return SourceMask((math.inf,), self.mask(words, size, threshold, True)[None])
        so_far = self.steps.cumsum(0) / torch.arange(1, len(self.steps) + 1).view(-1, 1, 1, 1, 1)
        maps = torch.stack([so_far[:, i, self.columns(i, found)].sum(1) for i, found in enumerate(words)], 1)
        return SourceMask(self.levels, word_mask(maps.flatten(0, 1), size, threshold, grow=grow).unflatten(0, maps.shape[:2]))

    def columns(self, picture, words):
        """Which of a picture's maps are those of some words; a Word may be all occurrences of one."""
        wanted = {position for word in words for position in word.positions}
        return [i for i, word in enumerate(self.tokens[picture % len(self.tokens)].named) if wanted.issuperset(word.positions)]


def one_hot(groups, tokens, like):
    """[rows, tokens, groups] values that are 1 in column g on the positions of group g of that row."""
    values = torch.zeros(len(groups), tokens, max(map(len, groups)))
    for row, positions in enumerate(groups):
        for column, group in enumerate(positions):
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

    attention(q, k, v) computes softmax(q k^T) v; groups: for each row a list of tuples of positions below `length`, the text's
    own length (the host may repeat its columns in k)."""
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
    return tuple(math.ceil(side * site.share) for side in rows.call.run.shape[-2:])


def in_place(maps, rows, site):
    """An area's maps [rows, groups, h, w] on the grid of the whole latent, and how often each of its places was seen."""
    full = _full(rows, site)
    cells = window(torch.arange(math.prod(full), device=maps.device).view(1, -1, 1), full, site.grid, rows).flatten()
    whole, seen = maps.new_zeros(*maps.shape[:2], math.prod(full)), maps.new_zeros(math.prod(full))
    whole[..., cells], seen[cells] = maps.flatten(2), 1
    return whole.unflatten(2, full), seen.view(full)


@dataclass(frozen=True, eq=False)
class WordMaps(AttentionEdit):
    """Gathers the maps of words of the prompt being sampled, at the sites of one resolution, into the run's memory; with `fine`,
    the share of a finer grid, there also what self-attention makes of those of the steps before.

    words(prompts) names the Words wanted of each of several prompts' Tokens; needed: whether a run without Tokens is an error.
    `mean(run)` and `refined(run)` are [rows, words, h, w], 0 outside of all areas, or None before the first."""
    words: object
    share: float
    fine: "float | None" = None
    needed: bool = True
    follows, name = True, "Refining words' maps"

    def begin(self, run):
        known = sampled_tokens(run)
        if not known and self.needed:
            raise ValueError("Words are to be found in the sampled prompt, but it carries no words: connect Prompt Edit's "
                             "target CONDITIONING to the sampler.")
        for prompts in known:
            self.words(prompts)

    def before(self, run, x, sigma):
        if self.fine and "maps" in run.memory(self):
            run.memory(self)["known"] = self.mean(run)
        return x

    def acts(self, run, site, sigma):
        return site.share == (self.share if site.kind == "cross" else self.fine)

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
        maps, seen = in_place(maps, rows, site) if "area" in rows.entry else (maps, 1)
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
        """[rows, h, w] of `word_mask`, of all words together; in the first step, which has no refined maps yet, of those it has."""
        maps, refined = self.mean(run), self.refined(run)
        if maps is None:
            return None
        maps = (maps if refined is None else refined).sum(1)
        return word_mask(maps, run.shape[-2:], threshold, refined is not None, grow and self.fine is None)


def resolution(model, share) -> float:
    """The finest resolution of cross-attention that is at most `share` of the latent's side, else the coarsest there is."""
    shares = sorted(set(positions(model.model.diffusion_model).values()))
    return max((s for s in shares if s <= share), default=shares[0])


def refining(model, latent, share) -> float:
    """The share of the grid that refines maps of `share`: the coarsest, not under `share`, of ENOUGH places, else the finest."""
    shares = sorted(s for s in set(positions(model.model.diffusion_model).values()) if s >= share)
    return next((s for s in shares if math.prod(math.ceil(side * s) for side in latent) >= ENOUGH), shares[-1])


def read_maps(model, inversion, share=0.25) -> Attention:
    """The maps of every word of the source, along the inversion's trajectory: a step a forward, whatever the pictures, since each
    refines the maps of those before."""
    require_plain(model, "Attention Store")
    if not any(tokens.named for tokens in inversion.tokens):
        raise ValueError(f"Attention Store maps the words of the source, the INVERSION's prompt {inversion.tokens[0].text!r} has "
                         "none: write what the picture shows as Prompt Edit's source, and invert with it.")
    share, batch = resolution(model, share), inversion.batch
    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    fine = refining(model, inversion.shape[-2:], share)
    editor = WordMaps(lambda prompts: [tokens.named for tokens in prompts], share, fine)
    steps, refined = [], []

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        memory = run.memory(editor)
        for again, i in enumerate((0, *range(len(sigmas) - 1))):  # the first twice, to refine its own maps
            latents = inversion.latents[i].to(x)
            x0 = denoise(latents, sigmas[i].repeat(batch), **extra_args)
            found, finer = editor.mean(run), editor.refined(run)
            memory.clear()
            memory["known"] = torch.stack([*steps, found]).mean(0)
            if not again:
                continue
            steps.append(found)
            refined.extend([] if finer is None else [finer.cpu()])
            callback({"x": latents, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
        return x

    sample(attach(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(solver))
    tokens = tuple(inversion.tokens[i % len(inversion.tokens)] for i in range(batch))
    refined = torch.stack(refined).mean(0) if refined else None
    return Attention(tokens, torch.stack(steps).cpu(), tuple(inversion.sigmas[:-1].tolist()), tuple(inversion.shape[-2:]), share,
                     fine, refined)
