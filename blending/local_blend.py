"""Local blending of latents on an inversion: Blended Latent Diffusion (Avrahami, Fried, Lischinski 2022, arXiv:2206.02779)
and Prompt-to-Prompt's LocalBlend (Hertz et al. 2022, arXiv:2208.01626, section 4.1).

From `start` on, at every model call: x_t <- m · x_t + (1 - m) · z*_t, with z*_t the source's own latent at this σ, which the
inversion knows, and the prediction x0 <- m · x0 + (1 - m) · x0*, so that any sampler lands on the source outside m.
m is a given mask, or the union of the source words' map and of the target words' maps gathered in this run so far.
Differs from the papers: the source's latents are the inversion's, exact at every σ, not noised anew or sampled beside.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size

from ..host.session import Editor


def latent_mask(mask, size):
    """[B, h, w] mask of a latent from a picture's [B, H, W]: a latent cell takes the largest value that it covers."""
    return F.adaptive_max_pool2d(mask[:, None].float(), size)[:, 0]


def threshold_maps(maps, size, threshold):
    """[B, h, w] in {0, 1}, the union of words' attention maps [B, words, h', w']: each word's map by 3×3 maximum, resized, where
    it is over `threshold` of its own maximum (P2P's LocalBlend)."""
    maps = F.interpolate(F.max_pool2d(maps.float(), 3, 1, 1), size=size, mode="bilinear")
    return (maps > threshold * maps.amax((2, 3), keepdim=True)).any(1).float()


@dataclass(frozen=True, eq=False)
class LocalBlend(Editor):
    """mask: [B, h, w] at the latent's size, 1 where the edit may write, or None; start: percent of the schedule;
    gathered(run): [rows, words, h', w'] maps of the target words in this run so far, or None; threshold: of a map's maximum."""
    inversion: object
    mask: torch.Tensor
    start: float = 0.2
    gathered: object = None
    threshold: float = 0.3

    def begin(self, run):
        masks = 1 if self.mask is None else len(self.mask)
        if run.shape[0] % masks:
            raise ValueError(f"Latent Blend has {masks} masks, the latent being sampled {run.shape[0]} rows: the rows must be a "
                             f"multiple of {masks} (Repeat Latent Batch).")
        run.warn_if_idle("Latent Blend", lambda sigma: run.within(sigma, self.start, 1.0))

    def before(self, run, x, sigma):
        if not run.within(sigma, self.start, 1.0):
            return x
        m, source = self._mask(run, x), repeat_to_batch_size(self.inversion.at(sigma), x.shape[0]).to(x)
        return m * x + (1 - m) * source

    def after(self, run, x0, sigma):
        if not run.within(sigma, self.start, 1.0):
            return x0
        m, source = self._mask(run, x0), repeat_to_batch_size(self.inversion.latents[-1], x0.shape[0]).to(x0)
        return m * x0 + (1 - m) * source

    def _mask(self, run, x):
        m = torch.zeros(1, *x.shape[-2:]) if self.mask is None else self.mask
        m = repeat_to_batch_size(m, x.shape[0]).to(x)
        maps = self.gathered(run) if self.gathered else None
        if maps is not None:
            m = torch.maximum(m, threshold_maps(maps, x.shape[-2:], self.threshold).to(x))
        return m.view(m.shape[0], *[1] * (x.ndim - 3), *m.shape[1:])
