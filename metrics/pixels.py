"""Distances between pictures (B, H, W, C) in 0..1; each gives one number a picture, [B].

`where` (B, H, W) takes only some pixels into account, and the number is normalised by their area: the mean is over them
alone. The `pie_` measures follow the other convention, of PIE-Bench (Ju et al., "Direct Inversion", 2023,
arXiv:2310.01506), which the tables of papers hold: the edited region is black in both pictures and the mean is over
the whole picture. With a background share f its MSE is f times ours, and its PSNR -10 log10 f dB above ours.

No pixel to look at gives nan, as in PIE-Bench. Equal pictures have an infinite PSNR. Pictures are measured in tiles, so
that the memory does not grow with their size: in float32 (float64 where they are), with the tiles' sums in float64.
tick() is called before each tile, and may raise to end the measure.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 256  # pixels a side: what SSIM holds of one stays in a core's cache


def tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each tile."""
    return [(slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width)))
            for y in range(0, height, TILE) for x in range(0, width, TILE)]


def _mean(index, a: Tensor, b: Tensor, where: Tensor | None, tick, reach: int = 0) -> Tensor:
    """[B]: the mean of index(a, b, w), [C, h, w] of a tile, over its pixels with weight w [1, h, w] (1 without
    `where`).

    reach: how many pixels more the index gets on each side of what it gives; the picture is mirrored at its border."""
    given = [a, b] if where is None else [a, b, where[..., None]]
    if len({z.shape[1:3] for z in given}) > 1:
        raise ValueError(f"What is compared is of sizes {', '.join(f'{z.shape[2]}x{z.shape[1]}' for z in given)}: give "
                         "all one size")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    totals, weights = torch.zeros(2, max(map(len, given)), dtype=torch.double, device=a.device)
    for i in range(len(totals)):
        for tile in tiles(*a.shape[1:3]):
            tick()
            p, q, *w = (_part(z[i % len(z)], tile, reach).to(dtype) for z in given)
            values = index(p, q, *w)
            w = w[0][:, reach:-reach or None, reach:-reach or None] if w else values.new_ones(1, 1, 1)
            totals[i] += (values * w).sum(dtype=torch.double)
            weights[i] += w.expand_as(values).sum(dtype=torch.double)
    return totals / weights


def _part(z: Tensor, tile: tuple[slice, slice], reach: int) -> Tensor:
    """A tile of (H, W, C) and `reach` pixels around it, the picture mirrored at its border: (C, h, w)."""
    inside, beyond = zip(*(_within(s, reach, side) for s, side in zip(tile, z.shape)))
    z = z[inside].movedim(-1, 0).contiguous()
    return F.pad(z, (*beyond[1], *beyond[0]), mode="reflect") if any(sum(beyond, ())) else z


def _within(s: slice, reach: int, side: int) -> tuple[slice, tuple[int, int]]:
    """What of a slice and of `reach` around it lies in 0..side, and how much lies before and behind."""
    start, stop = max(s.start - reach, 0), min(s.stop + reach, side)
    return slice(start, stop), (start - (s.start - reach), s.stop + reach - stop)


def mse(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Mean squared error."""
    return _mean(lambda a, b, *w: (a - b) ** 2, a, b, where, tick)


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Peak signal-to-noise ratio in dB."""
    return -10 * mse(a, b, where, tick).log10()


def ssim(a: Tensor, b: Tensor, where: Tensor | None = None, tick=lambda: None) -> Tensor:
    """Structural similarity (Wang et al., 2004): Gaussian 11x11 windows, sigma 1.5, K1 0.01, K2 0.03, a window on each
    pixel, the picture mirrored at its border as torchmetrics does. Sides are 6 pixels or more.

    With `where`, only windows centred on its pixels, with moments from those pixels alone: nothing else counts.
    """
    if min(a.shape[1:3]) < 6:
        raise ValueError(f"SSIM mirrors 5 pixels at a border and the picture is {a.shape[2]}x{a.shape[1]}: use a "
                         "larger picture")
    return _mean(_similarity, a, b, where, tick, 5)


def _similarity(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """SSIM's index [C, h, w] of a tile and the 5 pixels around it, all with their weights."""
    share = 1 if weight is None else _window(weight)

    def moment(z):
        return _window(z if weight is None else z.mul_(weight)).div_(share)

    c1, c2 = .01 ** 2, .03 ** 2
    a, b = a - .5, b - .5  # a variance is a small difference of squares, and smaller squares round less
    var, cov = moment(a * a + b * b), moment(a * b)
    a, b = moment(a), moment(b)
    var, cov = var.sub_(a * a + b * b), cov.sub_(a * b)  # of equal pictures var is 2 cov to the last bit
    a, b = a.add_(.5), b.add_(.5)
    index = (2 * a * b + c1) * cov.mul_(2).add_(c2) / ((a * a + b * b + c1) * var.add_(c2))
    return index if weight is None else torch.where(share > 0, index, 0)  # a window without weight is 0/0


def _window(z: Tensor) -> Tensor:
    """Gaussian 11x11 averages, sigma 1.5, around every pixel of (C, h + 10, w + 10) but the outer five."""
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
    """PIE-Bench's background PSNR in dB outside the edit mask (B, H, W). Its tables average the dB, not the MSE."""
    return -10 * pie_mse(a, b, mask).log10()


def pie_ssim(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """PIE-Bench's background SSIM outside the edit mask (B, H, W)."""
    a, b, nan = _blackened(a, b, mask)
    return ssim(a, b) + nan


def changed_share(a: Tensor, b: Tensor, threshold: float, tick=lambda: None) -> Tensor:
    """Share of the pixels of which some channel differs by more than the threshold, 0..1."""
    return _mean(lambda a, b: ((a - b).abs().amax(0, keepdim=True) > threshold).to(a), a, b, None, tick)
