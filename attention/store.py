"""Cross-attention maps of words (Hertz et al. 2022, arXiv:2208.01626, section 3.1), of a picture or of the run that edits it.

A word's map at a site is attention on one-hot values, which are 1 on the word's tokens: softmax(q k^T) · 1[word]. So fused
kernels compute it and nothing of size heads × pixels × tokens is made. The maps of a picture are read along its known
trajectory with the source prompt at CFG 1. Both are means over heads, over the sites of one resolution and over steps; where
a prompt is sampled in an area, its maps lie in that area, and a place has the mean of what was seen there.
"""
import math
from dataclasses import dataclass

import torch

from ..host.reference import levels_together
from ..host.sampling import Solver, sample
from ..host.session import attach, require_plain, rows_may_mix, running
from ..host.tokens import sampled_tokens
from .control import AttentionEdit, Site, positions, window


@dataclass(frozen=True, eq=False)
class Attention:
    """The ATTENTION value. tokens: the source's Tokens, one a picture; maps: [B, words, h, w] float32 on the CPU, the probability
    a place gives to each of the words, in the order of Tokens.named; latent: its (height, width); share: h / height."""
    tokens: tuple
    maps: torch.Tensor
    latent: tuple
    share: float

    def map(self, picture, words):
        """[h, w]: the summed map of some words, Word values of this picture's Tokens."""
        return self.maps[picture, self.columns(picture, words)].sum(0)

    def columns(self, picture, words):
        """Which of a picture's maps are those of some words; a Word may be all occurrences of one."""
        wanted = {position for word in words for position in word.positions}
        return [i for i, word in enumerate(self.tokens[picture % len(self.tokens)].named) if wanted.issuperset(word.positions)]


def one_hot(groups, tokens, heads, width, like):
    """[rows, tokens, heads · dim] values that are 1 in column g of every head on the positions of group g of that row."""
    values = torch.zeros(len(groups), tokens, heads, width // heads)
    for row, positions in enumerate(groups):
        for column, group in enumerate(positions):
            values[row, list(group), :, column] = 1
    return values.flatten(2).to(like)


def word_maps(attention, site: Site, q, k, groups, length):
    """[rows, groups, h, w]: the mean over heads of the probability each place gives to a group of token positions.

    attention(q, k, v) computes softmax(q k^T) v; groups: for each row a list of tuples of positions below `length`, the text's
    own length (the host may repeat its columns in k)."""
    dim = q.shape[-1] // site.heads
    parts = []
    for first in range(0, max(map(len, groups)), dim):
        part = [g[first:first + dim] for g in groups]
        values = one_hot(part, length, site.heads, q.shape[-1], q).repeat(1, k.shape[1] // length, 1)
        out = attention(q, k, values).unflatten(-1, (site.heads, dim))[..., :max(map(len, part))]
        parts.append(out.float().mean(2).transpose(1, 2).unflatten(2, site.grid))
    return torch.cat(parts, 1)


def in_place(maps, rows, site):
    """An area's maps [rows, groups, h, w] on the grid of the whole latent, and how often each of its places was seen."""
    full = tuple(math.ceil(side * site.share) for side in rows.call.run.shape[-2:])
    cells = window(torch.arange(math.prod(full), device=maps.device).view(1, -1, 1), full, site.grid, rows).flatten()
    whole, seen = maps.new_zeros(*maps.shape[:2], math.prod(full)), maps.new_zeros(math.prod(full))
    whole[..., cells], seen[cells] = maps.flatten(2), 1
    return whole.unflatten(2, full), seen.view(full)


@dataclass(frozen=True, eq=False)
class WordMaps(AttentionEdit):
    """Gathers the maps of words of the prompt being sampled, at the sites of one resolution, into the run's memory.

    words(prompts) names the Words wanted of each of several prompts' Tokens. `mean(run)` is [rows, words, h, w], 0 outside of
    all areas, or None before the first."""
    words: object
    share: float
    follows = True

    def begin(self, run):
        known = sampled_tokens(run)
        if not known:
            raise ValueError("Words are to be found in the sampled prompt, but it carries no words: connect Prompt Edit's "
                             "target CONDITIONING to the sampler.")
        for prompts in known:
            self.words(prompts)

    def acts(self, run, site, sigma):
        return site.kind == "cross" and site.share == self.share

    def observe(self, rows, site, q, k, v, attention):
        tokens = rows.entry.get("palimpsest_tokens")
        if tokens is None:
            return
        memory = rows.call.run.memory(self)
        if id(tokens) not in memory:
            memory[id(tokens)] = [[word.positions for word in words] for words in self.words(tokens)]
        groups = [memory[id(tokens)][i % len(tokens)] for i in range(rows.count)]
        maps, seen = word_maps(attention, site, q, k, groups, len(tokens[0].ids)), 1
        if "area" in rows.entry:
            maps, seen = in_place(maps, rows, site)
        memory["sum"] = memory.get("sum", 0) + maps
        memory["count"] = memory.get("count", 0) + seen

    def mean(self, run):
        memory = run.memory(self)
        return memory["sum"] / torch.as_tensor(memory["count"]).clamp(min=1) if "sum" in memory else None


def resolution(model, share) -> float:
    """The finest resolution of cross-attention that is at most `share` of the latent's side, else the coarsest there is."""
    shares = sorted(set(positions(model.model.diffusion_model).values()))
    return max((s for s in shares if s <= share), default=shares[0])


def read_maps(model, inversion, share=0.25) -> Attention:
    """The maps of every word of the source, along the inversion's trajectory; several steps share a forward where they may."""
    require_plain(model, "Attention Store")
    if not any(tokens.named for tokens in inversion.tokens):
        raise ValueError(f"Attention Store maps the words of the source, the INVERSION's prompt {inversion.tokens[0].text!r} has "
                         "none: write what the picture shows as Prompt Edit's source, and invert with it.")
    share, batch = resolution(model, share), inversion.batch
    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    editor = WordMaps(lambda prompts: [tokens.named for tokens in prompts], share)
    together = levels_together(batch, inversion.shape[-2:]) if rows_may_mix(model, inversion.conditioning) else 1
    total = 0

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        nonlocal total
        run = running(extra_args["model_options"])
        for first in range(0, len(sigmas) - 1, together):
            levels = range(first, min(first + together, len(sigmas) - 1))
            latents = torch.cat([inversion.latents[i] for i in levels]).to(x)
            x0 = denoise(latents, sigmas[list(levels)].repeat_interleave(batch), **extra_args)
            total = total + editor.mean(run).unflatten(0, (len(levels), batch)).sum(0)
            run.memory(editor).clear()
            callback({"x": latents[-batch:], "i": levels[-1], "sigma": sigmas[first], "sigma_hat": sigmas[first],
                      "denoised": x0[-batch:]})
        return x

    sample(attach(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(solver))
    tokens = tuple(inversion.tokens[i % len(inversion.tokens)] for i in range(batch))
    return Attention(tokens, (total / (len(inversion.sigmas) - 1)).cpu(), tuple(inversion.shape[-2:]), share)
