"""Distances between pictures (B, H, W, C) in 0..1. Each gives one number per picture, [B]. One picture serves a batch.

`where` (B, H, W) selects pixels. The mean is over these pixels alone. The `pie_` measures follow the other convention,
that of PIE-Bench (Ju et al., "Direct Inversion", 2023, arXiv:2310.01506) and of the papers' tables: the edited region
is black in both pictures, and the mean is over the whole picture. With a background share f, its MSE is f times ours
and its PSNR is -10 log10 f dB above ours.

An empty selection gives nan, as in PIE-Bench, and so does one with a NaN. Equal pictures have an infinite PSNR.
Pictures are measured in tiles, so that memory does not grow with their size. A tile is computed in float32 (float64 for
float64 pictures), and the sums over tiles in float64. tick() is called before each tile and may raise to stop.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 256  # pixels a side, so that SSIM's buffers of one tile fit in the cache of a core


def tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each tile."""
    return [(slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width)))
            for y in range(0, height, TILE) for x in range(0, width, TILE)]


def _mean(index, a: Tensor, b: Tensor, where: Tensor | None, tick, reach: int = 0) -> Tensor:
    """[B]: the mean of index(a, b, w) over all pixels. A tile's index is [C, h, w], its weight w [1, h, w].

    Without `where` the weight is 1. The index reads `reach` more pixels on each side than it returns. The picture is
    mirrored at its border.
    """
    given = [a, b] if where is None else [a, b, where[..., None]]
    if len({z.shape[1:3] for z in given}) > 1:
        raise ValueError(f"What is compared is of sizes {', '.join(f'{z.shape[2]}x{z.shape[1]}' for z in given)}: give "
                         "all one size")
    batch = max(map(len, given))
    if {len(z) for z in given} - {1, batch}:
        raise ValueError(f"What is compared holds {', '.join(str(len(z)) for z in given)} pictures: give one for all, "
                         f"or {batch}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    totals, weights = torch.zeros(2, batch, dtype=torch.double, device=a.device)
    for i in range(len(totals)):
        for tile in tiles(*a.shape[1:3]):
            tick()
            p, q, *w = (_part(z[i % len(z)], tile, reach).to(dtype) for z in given)
            values = index(p, q, *w)
            w = w[0][:, reach:-reach or None, reach:-reach or None] if w else values.new_ones(1, 1, 1)
            totals[i] += (values * w).where(w > 0, 0).sum(dtype=torch.double)  # NaN · 0 is NaN
            weights[i] += w.expand_as(values).sum(dtype=torch.double)
    return totals / weights


def _part(z: Tensor, tile: tuple[slice, slice], reach: int) -> Tensor:
    """A tile of (H, W, C) with `reach` pixels around it, as (C, h, w). The picture is mirrored at its border."""
    inside, beyond = zip(*(_within(s, reach, side) for s, side in zip(tile, z.shape)))
    z = z[inside].movedim(-1, 0).contiguous()
    return F.pad(z, (*beyond[1], *beyond[0]), mode="reflect") if any(sum(beyond, ())) else z


def _within(s: slice, reach: int, side: int) -> tuple[slice, tuple[int, int]]:
    """The part of a slice, widened by `reach`, that lies in 0..side, and how far it would reach out on both sides."""
    start, stop = max(s.start - reach, 0), min(s.stop + reach, side)
    return slice(start, stop), (start - (s.start - reach), s.stop + reach - stop)


def mse(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Mean squared error."""
    return _mean(lambda a, b, *w: (a - b) ** 2, a, b, where, tick)


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Peak signal-to-noise ratio in dB."""
    return -10 * mse(a, b, where, tick).log10()


def ssim(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Structural similarity (Wang et al., 2004).

    Gaussian 11x11 windows, sigma 1.5, K1 0.01, K2 0.03, one window on each pixel. The picture is mirrored at its
    border, as in torchmetrics. Sides must be 6 pixels or more. With `where`, only windows centred on its pixels count,
    and their moments come from these pixels alone.
    """
    if min(a.shape[1:3]) < 6:
        raise ValueError(f"SSIM mirrors 5 pixels at a border and the picture is {a.shape[2]}x{a.shape[1]}: use a "
                         "larger picture")
    return _mean(_similarity, a, b, where, tick, 5)


def _similarity(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """SSIM's index [C, h, w] of a tile. a, b and weight hold 5 more pixels on each side."""
    share = 1 if weight is None else _window(weight)

    def moment(z):
        return _window(z if weight is None else z.mul_(weight)).div_(share)

    c1, c2 = .01 ** 2, .03 ** 2
    a, b = a - .5, b - .5  # smaller squares round less, and a variance is a small difference of squares
    var, cov = moment(a * a + b * b), moment(a * b)
    a, b = moment(a), moment(b)
    var, cov = var.sub_(a * a + b * b), cov.sub_(a * b)  # of equal pictures var is 2 cov to the last bit
    a, b = a.add_(.5), b.add_(.5)
    index = (2 * a * b + c1) * cov.mul_(2).add_(c2) / ((a * a + b * b + c1) * var.add_(c2))
    return index if weight is None else torch.where(share > 0, index, 0)  # a window without weight is 0/0


def _window(z: Tensor) -> Tensor:
    """Gaussian 11x11 averages, sigma 1.5, of (C, h + 10, w + 10). The outer five pixels have none."""
    g = torch.exp(-torch.arange(-5, 6, dtype=z.dtype) ** 2 / (2 * 1.5 ** 2))
    for dim in (1, 2):
        n = z.shape[dim] - 10
        total = torch.zeros_like(z.narrow(dim, 0, n))
        for i, share in enumerate((g / g.sum()).tolist()):
            total.add_(z.narrow(dim, i, n), alpha=share)
        z = total
    return z


def _blackened(a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keep = 1 - mask.to(a)[..., None]
    no_background = torch.where(keep.sum((1, 2, 3)) == 0, torch.nan, 0.)
    return a * keep, b * keep, no_background


def pie_mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PIE-Bench's background MSE outside the edit mask (B, H, W)."""
    a, b, nan = _blackened(a, b, mask)
    return mse(a, b) + nan


def pie_psnr(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PIE-Bench's background PSNR in dB outside the edit mask (B, H, W). Its tables average dB, not MSE."""
    return -10 * pie_mse(a, b, mask).log10()


def pie_ssim(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PIE-Bench's background SSIM outside the edit mask (B, H, W)."""
    a, b, nan = _blackened(a, b, mask)
    return ssim(a, b) + nan


def changed_share(a: Tensor, b: Tensor, threshold: float, tick=lambda: None) -> Tensor:
    """Share (0..1) of the pixels with a channel that differs by more than the threshold. NaN differs from all."""
    return _mean(lambda a, b: (~((a - b).abs().amax(0, keepdim=True) <= threshold)).to(a), a, b, None, tick)
