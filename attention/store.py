"""Cross-attention maps of a picture's words, of Prompt-to-Prompt. Hertz et al., ICLR 2023, section 3.1.
arXiv:2208.01626

The maps are read along the picture's known trajectory, with the source prompt at CFG 1. They are means over heads, over
the sites of one resolution and over steps. editing/word_maps.py says how a map is computed without one of pixels by
tokens, and how self-attention refines it.
Differs from the paper: maps are refined by one step of a random walk over self-attention (Dataset Diffusion, Nguyen et
al., NeurIPS 2023, arXiv:2309.14303, takes powers of it). More steps join objects that look alike. Where attention joins
words and picture, a word's map is what the picture's tokens give to its tokens in the one softmax of all.
Checked against: the paper's equations, on explicit maps of the picture's forwards one by one.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..editing.editor import require_plain
from ..editing.masks import SourceMask, word_mask
from ..editing.run import attach
from ..editing.word_maps import WordMaps, nearest_resolution, refining_resolution, word_layers_of
from ..host.keys import running
from ..host.sampling import Solver, sample
from ..host.tokens import Tokens, Word
from ..inversion.grid import report_step
from .alignment import PromptEdit


@dataclass(frozen=True, eq=False)
class Attention:
    """The ATTENTION value.

    tokens: the source's Tokens, one a picture.
    steps: [S, B, words, h, w] float32 on the CPU, the probability that a place gives to each word at each level. Words
        stand as in Tokens.named.
    levels: the σ of the steps.
    latent: the latent's (height, width).
    resolution: h / height.
    fine: the resolution of the refined maps.
    refined: [B, words, h', w'], their mean over steps. None where another node cuts self-attention into tiles.
    edit: the PROMPT_EDIT whose source they show.
    layers: the addresses of the attention that shows them, or None for all of the resolution.
    """
    tokens: tuple[Tokens, ...]
    steps: Tensor
    levels: tuple[float, ...]
    latent: tuple[int, int]
    resolution: float
    fine: float
    refined: Tensor | None
    edit: PromptEdit | None = None
    layers: frozenset | None = None

    @cached_property
    def maps(self) -> Tensor:
        """[B, words, h, w], the mean over steps."""
        return self.steps.mean(0)

    def map(self, picture: int, words: list[Word], refined=False) -> Tensor:
        """[h, w]: the summed map of some words of this picture's Tokens. More rows than pictures take turns."""
        maps = self.chosen(refined)
        return maps[picture % len(maps), self.columns(picture, words)].sum(0)

    def chosen(self, refined: bool) -> Tensor:
        """The maps, refined or as they are."""
        if not refined:
            return self.maps
        if self.refined is None:
            raise ValueError("The ATTENTION has no refined maps, since self-attention was cut into tiles: "
                             "remove HyperTile before Attention Store, or turn refine off.")
        return self.refined

    def mask(self, words: list[list[Word]], size, threshold, refined: bool) -> Tensor:
        """[B, h, w] of `word_mask`, of some words of each picture."""
        maps = torch.stack([self.map(i, found, refined) for i, found in enumerate(words)])
        return word_mask(maps, size, threshold, refined)

    def masks(self, words: list[list[Word]], size, threshold, refined: bool, grow=True) -> SourceMask:
        """The SourceMask of some words of each picture: the refined mask at every level, or each level's
        mask of the maps so far."""
        if refined:
            return SourceMask((math.inf,), self.mask(words, size, threshold, True)[None])
        so_far = self.steps.cumsum(0) / torch.arange(1, len(self.steps) + 1).view(-1, 1, 1, 1, 1)
        maps = torch.stack([so_far[:, i % so_far.shape[1], self.columns(i, found)].sum(1)
                            for i, found in enumerate(words)], 1)
        return SourceMask(self.levels, word_mask(maps.flatten(0, 1), size, threshold,
                                                 grow=grow).unflatten(0, maps.shape[:2]))

    def columns(self, picture: int, words: list[Word]) -> list[int]:
        """Which of a picture's maps are those of some words. A Word may be all occurrences of one."""
        wanted = {position for word in words for position in word.positions}
        return [i for i, word in enumerate(self.tokens[picture % len(self.tokens)].named)
                if wanted.issuperset(word.positions)]


def read_maps(model, inversion, resolution=0.25, edit: PromptEdit | None = None) -> Attention:
    """The maps of every word of the source, along the inversion's trajectory. One step a forward, since each refines
    the maps of those before."""
    require_plain(model, "Attention Store")
    if not any(tokens.named for tokens in inversion.tokens):
        raise ValueError("Attention Store maps the words of the source, the INVERSION's prompt "
                         f"{inversion.tokens[0].text!r} has none: write what the picture shows as Prompt Edit's "
                         "source, and invert with it.")
    resolution, batch = nearest_resolution(model, resolution), inversion.batch
    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    fine = refining_resolution(model, inversion.shape[-2:], resolution)
    layers = word_layers_of(model)
    editor = WordMaps(lambda prompts: [tokens.named for tokens in prompts], resolution, fine, layers)
    steps, refined = [], []

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        for again, i in enumerate((0, *range(len(sigmas) - 1))):  # the first twice, to refine its own maps
            latents = inversion.latents[i].to(x)
            x0 = denoise(latents, sigmas[i].repeat(batch), **extra_args)
            found, finer = editor.mean(run), editor.refined(run)
            run.state(editor).start_again(torch.stack([*steps, found]).mean(0))
            if not again:
                continue
            steps.append(found)
            refined.extend([] if finer is None else [finer.cpu()])
            report_step(callback, i, latents, sigmas[i], x0)
        return x

    sample(attach(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(solver))
    return Attention(tuple(inversion.tokens[i % len(inversion.tokens)] for i in range(batch)),
                     torch.stack(steps).cpu(), tuple(inversion.sigmas[:-1].tolist()), tuple(inversion.shape[-2:]),
                     resolution, fine, torch.stack(refined).mean(0) if refined else None, edit, layers)
