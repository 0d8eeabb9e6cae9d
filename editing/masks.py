"""Masks of a picture, of its latent and of words, and editors that keep the source outside a mask."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.canvas import log
from ..inversion.trajectory import Inversion
from ..metrics.masks import grow
from .editor import Editor

WIDE = 2 / 3  # of the picture: a mask of words that covers more holds little of it


def covered(picture, cells):
    """Rows and columns, two slices, of a picture (height, width) that a latent of (h, w) cells shows: VAE Encode crops
    what is over a multiple of its factor from both sides. ValueError where such a picture gives no such latent."""
    factor = min(side // n for side, n in zip(picture, cells))
    over = [side - factor * n for side, n in zip(picture, cells)]
    if max(over) < factor:
        return tuple(slice(o // 2, o // 2 + factor * n) for o, n in zip(over, cells))
    if picture[0] * cells[1] == picture[1] * cells[0]:  # the same at another scale
        return slice(0, picture[0]), slice(0, picture[1])
    raise ValueError(f"The picture or mask is {picture[1]}x{picture[0]} and the latent {cells[1]}x{cells[0]} cells, "
                     "which is another shape: scale and crop picture and mask together (Upscale Image, crop center), "
                     "before VAE Encode.")


def latent_mask(mask, size):
    """[B, h, w] mask of a latent from its picture's [B, H, W]: a latent cell takes the largest value that it covers. A
    mask of one value may have any size."""
    mask = mask.float().cpu()
    if not mask.any():
        log.warning("The MASK is black all over, and white is what it chooses: paint it, or turn it round with "
                    "InvertMask.")
    if mask.min() < mask.max():
        rows, columns = covered(mask.shape[1:], size)
        mask = mask[:, rows, columns]
    return F.adaptive_max_pool2d(mask[:, None], size)[:, 0]


def masks_of(mask, inversion) -> Tensor:
    """The masks [masks, h, w] of an INVERSION's latent from its pictures' [B, H, W], or [1, T, h, w] where one video
    has one for each frame of its own or of its latent. A latent's frames after the first hold several of those, and
    take the largest value."""
    masks, shape = latent_mask(mask, tuple(inversion.shape[-2:])), inversion.shape[1:-2]
    later, many = (shape[0] if shape else 1) - 1, len(masks) - 1
    if inversion.pictures > 1 or later < 1 or many < later or many % later:
        return masks
    return torch.cat([masks[:1], masks[1:].unflatten(0, (later, -1)).amax(1)])[None]


def picture_mask(mask, picture):
    """[B, H, W]: a mask of what a latent shows of a picture (height, width), spread over what VAE Encode cropped."""
    top, left = ((side - n) // 2 for side, n in zip(picture, mask.shape[1:]))
    return F.pad(mask, (left, picture[1] - mask.shape[2] - left, top, picture[0] - mask.shape[1] - top),
                 mode="replicate")


def grown(masks, cells) -> Tensor:
    """Masks [..., h, w] with every value spread over a square that reaches so many cells further on each side."""
    return grow(masks.flatten(0, -3), cells).view_as(masks)


def otsu(maps):
    """[B, 1, 1, 1]: for each map [B, 1, h, w] the threshold that parts its values into two classes with the most
    variance between them. A Threshold Selection Method from Gray-Level Histograms, Otsu 1979."""
    values = maps.flatten(1).sort(1).values
    sums, n = values.cumsum(1), torch.arange(1, values.shape[1], device=maps.device)
    below, above = sums[:, :-1] / n, (sums[:, -1:] - sums[:, :-1]) / n.flip(0)
    best = (n * n.flip(0) * (above - below) ** 2).argmax(1, keepdim=True)
    return ((values.gather(1, best) + values.gather(1, best + 1)) / 2).view(-1, 1, 1, 1)


def word_mask(maps, size, threshold=0.0, refined=False, grow=True):
    """[B, h, w] in {0, 1}: where the summed map [B, h', w'] of some words is over `threshold` of its maximum.

    threshold: 0 takes Otsu's.
    refined: the map's least value counts as 0, and the map is resized smoothly, without growing. Other maps are resized
        to the nearest value, as in P2P's LocalBlend.
    grow: spread the map by a 3×3 maximum first, as in P2P's LocalBlend.
    """
    maps = maps[:, None].float()
    if refined:
        maps = maps - maps.amin((2, 3), keepdim=True)
    elif grow:
        maps = F.max_pool2d(maps, 3, 1, 1)
    resized = F.interpolate(maps, size=size, mode="bilinear" if refined else "nearest")
    return (resized > (threshold * resized.amax((2, 3), keepdim=True) if threshold else otsu(maps)))[:, 0].float()


def warn_if_wide(name, mask, warn=log.warning):
    """Warns if a mask [B, h, w] of words covers most of a picture."""
    share = float(mask.mean((1, 2)).max())
    if share > WIDE:
        warn("%s: the words' mask covers %.0f %% of the picture, so little is held: name the object's own words, raise "
             "the threshold (0 finds one), or turn refine on.", name, 100 * share)


class Anchored(Editor):
    """Holds the source of an `inversion` outside a mask, from the percent `start` on."""
    inversion: Inversion
    start: float
    holds = True
    follows = True

    def mask(self, run, x, sigma) -> Tensor:
        """[masks, (T,) h, w] at the latent's size, 1 where the edit may write; row i of x takes mask i mod their
        number."""
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
    """m · x + (1 - m) · source, with masks m [masks, (T,) h, w] and as many rows as x [B, C, …, h, w] has."""
    m = mask_for(m, x)
    return m * x + (1 - m) * repeat_to_batch_size(source, x.shape[0]).to(x)


def mask_for(m: Tensor, x: Tensor) -> Tensor:
    """Masks [masks, (T,) h, w] in a shape that broadcasts with x [B, C, …, h, w], row i mod their number for row i."""
    m = repeat_to_batch_size(m, x.shape[0]).to(x)
    return m.view(m.shape[0], *[1] * (x.ndim - m.ndim), *m.shape[1:])


@dataclass(frozen=True, eq=False)
class SourceMask:
    """Where words of the source lie: masks [n, B, h, w], of its maps down to each of n levels (σ)."""
    levels: tuple
    masks: Tensor

    def at(self, sigma, before=False):
        """[B, h, w] of the maps down to σ, or of those before it."""
        seen = sum(level * (1 - 1e-4) > sigma if before else level * (1 + 1e-4) >= sigma for level in self.levels)
        return self.masks[max(0, seen - 1)]


def smoothed(maps: Tensor) -> Tensor:
    """Maps [B, h, w] under the authors' kernel, mirrored at the edges."""
    line = torch.tensor([-1.0, 0.0, 1.0], device=maps.device).square().neg().exp()
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect"), kernel.to(maps)[None, None])[:, 0]
