"""Local blending of latents on an inversion: Blended Latent Diffusion (Avrahami, Fried, Lischinski 2022, arXiv:2206.02779)
and Prompt-to-Prompt's LocalBlend (Hertz et al. 2022, arXiv:2208.01626, section 4.1).

From `start` on, at every model call: x_t <- m · x_t + (1 - m) · z*_t, with z*_t the source's own latent at this σ, which the
inversion knows, and the prediction x0 <- m · x0 + (1 - m) · x0*, so that any sampler lands on the source outside m.
m is a given mask, or the union of the source words' map and of the target words' maps gathered in this run so far, without
the places of other source words (the authors' substruct_words, whose maps are not grown by the 3×3 maximum).
Differs from the papers: the source's latents are the inversion's, exact at every σ, not noised anew or sampled beside.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..host.canvas import log
from ..host.session import Editor


def covered(picture, cells):
    """Rows and columns, two slices, of a picture (height, width) that a latent of (h, w) cells shows: VAE Encode crops what is
    over a multiple of its factor from both sides. ValueError where such a picture gives no such latent."""
    factor = min(side // n for side, n in zip(picture, cells))
    over = [side - factor * n for side, n in zip(picture, cells)]
    if max(over) < factor:
        return tuple(slice(o // 2, o // 2 + factor * n) for o, n in zip(over, cells))
    if picture[0] * cells[1] == picture[1] * cells[0]:  # the same at another scale
        return slice(0, picture[0]), slice(0, picture[1])
    raise ValueError(f"The picture or mask is {picture[1]}x{picture[0]} and the latent {cells[1]}x{cells[0]} cells, which is another "
                     "shape: scale and crop picture and mask together (Upscale Image, crop center), before VAE Encode.")


def latent_mask(mask, size):
    """[B, h, w] mask of a latent from its picture's [B, H, W]: a latent cell takes the largest value that it covers. A mask of one
    value may have any size."""
    mask = mask.float().cpu()
    if not mask.any():
        log.warning("The MASK is black all over, and white is what it chooses: paint it, or turn it round with InvertMask.")
    if mask.min() < mask.max():
        rows, columns = covered(mask.shape[1:], size)
        mask = mask[:, rows, columns]
    return F.adaptive_max_pool2d(mask[:, None], size)[:, 0]


def picture_mask(mask, picture):
    """[B, H, W]: a mask of what a latent shows of a picture (height, width), spread over what VAE Encode cropped."""
    top, left = ((side - n) // 2 for side, n in zip(picture, mask.shape[1:]))
    return F.pad(mask, (left, picture[1] - mask.shape[2] - left, top, picture[0] - mask.shape[1] - top), mode="replicate")


def threshold_maps(maps, size, threshold, grow=True):
    """[B, h, w] in {0, 1}, the union of words' attention maps [B, words, h', w']: each word's map by 3×3 maximum, resized, where
    it is over `threshold` of its own maximum (P2P's LocalBlend). Without `grow` the maximum is left out."""
    maps = maps.float()
    maps = F.interpolate(F.max_pool2d(maps, 3, 1, 1) if grow else maps, size=size, mode="bilinear")
    return (maps > threshold * maps.amax((2, 3), keepdim=True)).any(1).float()


class Anchored(Editor):
    """Holds the source outside a mask from the percent `start` on. Subclasses have `inversion` and `start`."""
    holds = True
    follows = True

    def mask(self, run, x, sigma) -> Tensor:
        """[masks, h, w] at the latent's size, 1 where the edit may write; row i of x takes mask i mod their number."""
        raise NotImplementedError

    def seen(self, run, x, sigma) -> Tensor:
        """The mask through which the model sees x, where it is not `mask`."""
        return self.mask(run, x, sigma)

    def before(self, run, x, sigma):
        if not run.within(sigma, self.start, 1.0):
            return x
        return blend(x, run.shown(self.inversion, sigma), self.seen(run, x, sigma))

    def after(self, run, x0, sigma):
        if not run.within(sigma, self.start, 1.0):
            return x0
        return blend(x0, run.landing(self.inversion, sigma), self.mask(run, x0, sigma))


def blend(x, source, m):
    """m · x + (1 - m) · source, with masks m [masks, h, w] and as many rows as x [B, C, …, h, w] has."""
    m = repeat_to_batch_size(m, x.shape[0]).to(x)
    m = m.view(m.shape[0], *[1] * (x.ndim - 3), *m.shape[1:])
    return m * x + (1 - m) * repeat_to_batch_size(source, x.shape[0]).to(x)


def require_rows(run, masks, name):
    """Each row of the run must have a mask of its own, or share one."""
    if run.shape[0] % masks:
        raise ValueError(f"{name} has {masks} masks, the latent being sampled {run.shape[0]} rows: the rows must be a "
                         f"multiple of {masks} (Repeat Latent Batch).")


@dataclass(frozen=True, eq=False)
class LocalBlend(Anchored):
    """painted: [masks, h, w] at the latent's size, 1 where the edit may write, or None; start: percent of the schedule;
    named, removed: [B, h, w] where the source's words lie that may be written over, and those that may not, or None;
    gathered(run): [rows, words, h', w'] maps of the target words in this run so far, or None; threshold: of a map's maximum;
    in_time: the painted masks follow each other from `start` to the end, each for an equal share of the schedule."""
    inversion: object
    painted: "Tensor | None"
    start: float = 0.2
    named: "Tensor | None" = None
    removed: "Tensor | None" = None
    gathered: object = None
    threshold: float = 0.3
    in_time: bool = False

    def begin(self, run):
        if self.painted is not None and not self.in_time:
            require_rows(run, len(self.painted), "Latent Blend")
        run.warn_if_idle("Latent Blend", lambda sigma: run.within(sigma, self.start, 1.0))

    def mask(self, run, x, sigma):
        m = torch.zeros(x.shape[0], *x.shape[-2:])
        if self.painted is not None:
            m = repeat_to_batch_size(self.painted[self._now(run, sigma)], x.shape[0])
        if self.named is not None:
            m = torch.maximum(m, repeat_to_batch_size(self.named, x.shape[0]))
        maps = self.gathered(run) if self.gathered else None
        if maps is not None:
            m = torch.maximum(m.to(maps), threshold_maps(maps, x.shape[-2:], self.threshold))
        return m if self.removed is None else m * (1 - repeat_to_batch_size(self.removed, x.shape[0]).to(m))

    def _now(self, run, sigma):
        """Which of the painted masks hold at σ: all of them, row by row, or one."""
        count = len(self.painted)
        if not self.in_time:
            return slice(None)
        past = sum(run.within(sigma, self.start + (1 - self.start) * i / count, 1.0) for i in range(1, count))
        return slice(past, past + 1)
