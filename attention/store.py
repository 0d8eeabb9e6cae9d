"""Cross-attention maps of words (Hertz et al. 2022, arXiv:2208.01626, section 3.1), of a picture or of the run that
edits it.

A word's map at a site is attention on one-hot values, which are 1 on the word's tokens: softmax(q k^T) · 1[word]. So
fused kernels compute it and nothing of size heads × pixels × tokens is made. The maps of a picture are read along its
known trajectory with the source prompt at CFG 1. Both are means over heads, over the sites of one resolution and over
steps; where a prompt is sampled in an area, its maps lie in that area, and a place has the mean of what was seen there.

A word's map is coarse and spotty. Refined, a place takes what the places have that it attends to in self-attention,
S·M, a step of a random walk (Dataset Diffusion, Nguyen et al., NeurIPS 2023, arXiv:2309.14303, takes powers of S):
attention again, with the maps seen so far as values, so that no map of pixels by pixels is made either. One step, since
more join objects that look alike.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ..editing.editor import require_plain
from ..editing.masks import SourceMask, word_mask
from ..editing.run import attach
from ..editing.word_maps import WordMaps, nearest_resolution, refining_resolution
from ..host.keys import running
from ..host.sampling import Solver, sample


@dataclass(frozen=True, eq=False)
class Attention:
    """The ATTENTION value. tokens: the source's Tokens, one a picture; steps: [S, B, words, h, w] float32 on the CPU,
    the probability a place gives to each of the words at each of the levels (σ), in the order of Tokens.named; latent:
    its (height, width); resolution: h / height; refined: [B, words, h', w'], their mean over steps on the finer grid `fine`
    / latent, or None where another node cuts self-attention into tiles."""
    tokens: tuple
    steps: torch.Tensor
    levels: tuple
    latent: tuple
    resolution: float
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
            raise ValueError("The ATTENTION has words' maps and none that self-attention refined, which another node "
                             "cut into tiles: remove HyperTile before Attention Store, or turn refine off.")
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
        return SourceMask(self.levels, word_mask(maps.flatten(0, 1), size, threshold,
                                                 grow=grow).unflatten(0, maps.shape[:2]))

    def columns(self, picture, words):
        """Which of a picture's maps are those of some words; a Word may be all occurrences of one."""
        wanted = {position for word in words for position in word.positions}
        return [i for i, word in enumerate(self.tokens[picture % len(self.tokens)].named)
                if wanted.issuperset(word.positions)]


def read_maps(model, inversion, resolution=0.25) -> Attention:
    """The maps of every word of the source, along the inversion's trajectory: a step a forward, whatever the pictures,
    since each refines the maps of those before."""
    require_plain(model, "Attention Store")
    if not any(tokens.named for tokens in inversion.tokens):
        raise ValueError("Attention Store maps the words of the source, the INVERSION's prompt "
                         f"{inversion.tokens[0].text!r} has none: write what the picture shows as Prompt Edit's "
                         "source, and invert with it.")
    resolution, batch = nearest_resolution(model, resolution), inversion.batch
    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    fine = refining_resolution(model, inversion.shape[-2:], resolution)
    editor = WordMaps(lambda prompts: [tokens.named for tokens in prompts], resolution, fine)
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
    return Attention(tokens, torch.stack(steps).cpu(), tuple(inversion.sigmas[:-1].tolist()),
                     tuple(inversion.shape[-2:]), resolution,
                     fine, refined)
