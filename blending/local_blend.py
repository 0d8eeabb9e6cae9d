"""Local blending of latents on an inversion: Blended Latent Diffusion (Avrahami, Fried, Lischinski 2022,
arXiv:2206.02779) and Prompt-to-Prompt's LocalBlend (Hertz et al. 2022, arXiv:2208.01626, section 4.1).

From `start` on, at every model call, with z*_t the source's own latent at this σ, which the inversion knows,
    x_t <- m · x_t + (1 - m) · z*_t,   x0 <- m · x0 + (1 - m) · x0*,
so that any sampler lands on the source outside m (but for dpm_fast and dpm_adaptive, which end above σ = 0). m is a
given mask, or the union of where the source's words lie and where the target's do. Each is read from the sum of its
words' maps so far. The places of other words of both prompts may be left out (the authors' substruct_words, not grown
by the 3×3 maximum).

Differs from the papers: the source's latents are the inversion's, exact at every σ, not noised anew or sampled beside.
The threshold may be found in the maps themselves (Otsu 1979), and the maps refined by self-attention
(editing/word_maps.py). The authors' blend begins one step later (at 0.2 of 50 steps after the 11th).
Checked against: authors' code google/prompt-to-prompt@9c472e4, LocalBlend of the notebooks, at a fixed threshold and
with the maps as they are: its masks, and whole runs with explicit maps.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.masks import Anchored, SourceMask, warn_if_wide
from ..editing.run import Run
from ..host.batch import repeat_to_batch_size
from ..inversion.trajectory import Inversion


@dataclass(frozen=True, eq=False)
class LocalBlend(Anchored):
    """Holds the source outside a painted mask and the places of words.

    painted: [masks, h, w] at the latent's size, 1 where the edit may write.
    start: the percent of the schedule from which it holds.
    named: where the source's words lie that may be written over.
    removed: where those of its words lie that may not.
    gathered: gives [rows, h, w] of the target's words in this run so far, None before the first.
    removing: the same of the words that may not be written over.
    in_time: whether the painted masks follow each other from `start` to the end, each for an equal share.
    """
    inversion: Inversion
    painted: Tensor | None
    start: float = 0.2
    named: SourceMask | None = None
    removed: SourceMask | None = None
    gathered: Callable[[Run], Tensor | None] | None = None
    removing: Callable[[Run], Tensor | None] | None = None
    in_time: bool = False
    name = "Latent Blend"

    def begin(self, run):
        if self.painted is not None and not self.in_time:
            require_rows(run, len(self.painted), self.name)
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, 1.0))

    def mask(self, run, x, sigma, before=False):
        m = torch.zeros(x.shape[0], *x.shape[-2:])
        if self.painted is not None:
            m = repeat_to_batch_size(self.painted[self._painted_at(run, sigma)], x.shape[0])
        found = self._word_places(run, x, sigma, before, self.named, self.gathered)
        removed = self._word_places(run, x, sigma, before, self.removed, self.removing)
        every = (slice(None), None) if m.ndim > 3 else ()  # words lie alike in all frames
        if found is not None:
            warn_if_wide(self.name, found, partial(run.warn_once, self))
            m = torch.maximum(m.to(found), found[every])
        return m if removed is None else m.to(removed) * (1 - removed[every])

    def seen(self, run, x, sigma):
        return self.mask(run, x, sigma, before=True)

    @staticmethod
    def _word_places(run, x, sigma, before, named, gathered):
        """[rows, h, w]: where words of either prompt lie, or None."""
        found = [gathered(run)] if gathered else []
        if named is not None:
            found.append(repeat_to_batch_size(named.at(sigma, before), x.shape[0]))
        found = [m.to(x.device) for m in found if m is not None]
        return torch.stack(found).amax(0) if found else None

    def _painted_at(self, run, sigma):
        """Which of the painted masks hold at σ, as a slice: all of them, row by row, or one."""
        count = len(self.painted)
        if not self.in_time:
            return slice(None)
        past = sum(run.within(sigma, self.start + (1 - self.start) * i / count, 1.0) for i in range(1, count))
        return slice(past, past + 1)
