"""Local blending of latents on an inversion: Blended Latent Diffusion (Avrahami, Fried, Lischinski 2022,
arXiv:2206.02779) and Prompt-to-Prompt's LocalBlend (Hertz et al. 2022, arXiv:2208.01626, section 4.1).

From `start` on, at every model call: x_t <- m · x_t + (1 - m) · z*_t, with z*_t the source's own latent at this σ,
which the inversion knows, and the prediction x0 <- m · x0 + (1 - m) · x0*, so that any sampler lands on the source
outside m. m is a given mask, or the union of where the source's words lie and where the target's do, each by the sum of
its words' maps so far, without the places of other words of both prompts (the authors' substruct_words, not grown by
the 3×3 maximum).
Checked against: google/prompt-to-prompt@9c472e4, LocalBlend of the notebooks, at a fixed threshold and with the maps as
they are: its masks, and whole runs with explicit maps. Theirs begins one step later (at 0.2 of 50 steps after the
11th).
Differs from the papers: the source's latents are the inversion's, exact at every σ, not noised anew or sampled beside.
The threshold may be found in the maps themselves (Otsu 1979), and the maps refined by self-attention
(editing/word_maps.py).
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.masks import Anchored, SourceMask, require_rows, warn_if_wide
from ..host.batch import repeat_to_batch_size
from ..host.canvas import about


@dataclass(frozen=True, eq=False)
class LocalBlend(Anchored):
    """painted: [masks, h, w] at the latent's size, 1 where the edit may write, or None; start: percent of the schedule;
    named, removed: SourceMasks of the source's words that may be written over, and that may not, or None;
    gathered(run), removing(run): [rows, h, w] of the target's in this run so far, or None;
    in_time: the painted masks follow each other from `start` to the end, each for an equal share of the schedule."""
    inversion: object
    painted: "Tensor | None"
    start: float = 0.2
    named: "SourceMask | None" = None
    removed: "SourceMask | None" = None
    gathered: object = None
    removing: object = None
    in_time: bool = False

    def begin(self, run):
        if self.painted is not None and not self.in_time:
            require_rows(run, len(self.painted), "Latent Blend")
        run.warn_if_idle("Latent Blend", lambda sigma: run.within(sigma, self.start, 1.0))

    def mask(self, run, x, sigma, before=False):
        m = torch.zeros(x.shape[0], *x.shape[-2:])
        if self.painted is not None:
            m = repeat_to_batch_size(self.painted[self._now(run, sigma)], x.shape[0])
        found, taken = (self._words(run, x, sigma, before, *of)
                        for of in ((self.named, self.gathered), (self.removed, self.removing)))
        if found is not None:
            memory = run.memory(self)
            with about(self.node):
                memory["wide"] = memory.get("wide") or warn_if_wide("Latent Blend", found)
            m = torch.maximum(m.to(found), found)
        return m if taken is None else m.to(taken) * (1 - taken)

    def seen(self, run, x, sigma):
        return self.mask(run, x, sigma, before=True)

    @staticmethod
    def _words(run, x, sigma, before, named, gathered):
        """[rows, h, w]: where words of either prompt lie, or None."""
        found = [gathered(run)] if gathered else []
        if named is not None:
            found.append(repeat_to_batch_size(named.at(sigma, before), x.shape[0]))
        found = [m.to(x.device) for m in found if m is not None]
        return torch.stack(found).amax(0) if found else None

    def _now(self, run, sigma):
        """Which of the painted masks hold at σ: all of them, row by row, or one."""
        count = len(self.painted)
        if not self.in_time:
            return slice(None)
        past = sum(run.within(sigma, self.start + (1 - self.start) * i / count, 1.0) for i in range(1, count))
        return slice(past, past + 1)
