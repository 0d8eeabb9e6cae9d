"""Distances between pictures (B, H, W, C) in 0..1; each gives one number a picture, [B].

`where` (B, H, W) takes only some pixels into account, and the number is normalised by their area: the mean is over them
alone. The `pie_` measures follow the other convention, of PIE-Bench (Ju et al., "Direct Inversion", 2023,
arXiv:2310.01506), which the tables of papers hold: the edited region is black in both pictures and the mean is over
the whole picture. With a background share f its MSE is f times ours, and its PSNR -10 log10 f dB above ours.

No pixel to look at gives nan, as in PIE-Bench. Equal pictures have an infinite PSNR. Sums are taken in float64.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of values (B, H, W, C) a picture, weight (B, H, W, 1); nan without weight."""
    values, weight = torch.broadcast_tensors(values, weight)
    return (values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def _weight(a: Tensor, where: Tensor | None) -> Tensor:
    return torch.ones_like(a[..., :1], dtype=torch.double) if where is None else where.double()[..., None]


def mse(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared error."""
    return _mean((a.double() - b.double()) ** 2, _weight(a, where))


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB."""
    return -10 * mse(a, b, where).log10()


def ssim(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., 2004): Gaussian 11x11 windows, sigma 1.5, K1 0.01, K2 0.03, a window on each
    pixel, the picture mirrored at its border as torchmetrics does. Sides are 6 pixels or more.

    With `where`, only windows centred on its pixels, with moments from those pixels alone: nothing else counts.
    """
    if min(a.shape[1:3]) < 6:
        raise ValueError(f"SSIM mirrors 5 pixels at a border and the picture is {a.shape[2]}x{a.shape[1]}: use a larger "
                         "picture")
    weight = _weight(a, where).movedim(-1, 1)
    a, b = a.double().movedim(-1, 1), b.double().movedim(-1, 1)
    share = _window(weight)

    def moment(z):
        return _window(z * weight) / share

    mu_a, mu_b = moment(a), moment(b)
    var_a, var_b, cov = moment(a * a) - mu_a ** 2, moment(b * b) - mu_b ** 2, moment(a * b) - mu_a * mu_b
    c1, c2 = .01 ** 2, .03 ** 2
    index = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a ** 2 + mu_b ** 2 + c1) * (var_a + var_b + c2))
    index = torch.where(weight > 0, index, 0)  # a window without weight is 0/0
    return _mean(index.movedim(1, -1), weight.movedim(1, -1))


def _window(z: Tensor) -> Tensor:
    """Gaussian 11x11 averages, sigma 1.5, around every pixel of (B, C, H, W)."""
    H, W = z.shape[-2:]
    g = torch.exp(-torch.arange(-5, 6, dtype=z.dtype) ** 2 / (2 * 1.5 ** 2))
    g = (g / g.sum()).tolist()
    z = F.pad(z, (5, 5, 5, 5), mode="reflect")
    z = sum(share * z[..., i:i + H, :] for i, share in enumerate(g))
    return sum(share * z[..., i:i + W] for i, share in enumerate(g))


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


def changed_share(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Share of the pixels of which some channel differs by more than the threshold, 0..1."""
    return ((a - b).abs().amax(-1) > threshold).double().mean((1, 2))
