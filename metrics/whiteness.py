"""How close a latent [B,C,…,h,w] is to white noise N(0, 1), and the range that white noise of that size gives."""
import math

import torch
from torch import Tensor


def whiteness(noise: Tensor) -> dict[str, Tensor]:
    """Four numbers per latent, name -> [B] float64.

    mean, std: over its cells and channels
    kl: the divergence of N(mean, std²) from N(0, 1), in nats per cell
    neighbours: the correlation of cells that touch along a row or a column
    """
    noise = noise.double()
    mean = noise.flatten(1).mean(1)
    centred = noise - mean.view(-1, *[1] * (noise.ndim - 1))
    var = centred.flatten(1).square().mean(1)
    pairs = [centred[..., 1:, :] * centred[..., :-1, :], centred[..., 1:] * centred[..., :-1]]
    return {"mean": mean, "std": var.sqrt(), "kl": (var + mean ** 2 - 1 - var.log()) / 2,
            "neighbours": torch.cat([p.flatten(1) for p in pairs], 1).mean(1) / var}


def white_range(shape) -> dict[str, tuple[float, float]]:
    """The range of each number of `whiteness` in 95 of 100 latents of white noise, shape [C,…,h,w]."""
    *_, h, w = shape
    cells = math.prod(shape)
    pairs = cells // (h * w) * (h * (w - 1) + (h - 1) * w)
    mean, std, neighbours = (1.96 / math.sqrt(n) for n in (cells, 2 * cells, pairs))
    return {"mean": (-mean, mean), "std": (1 - std, 1 + std), "kl": (0.0, -math.log(.05) / cells),
            "neighbours": (-neighbours, neighbours)}
