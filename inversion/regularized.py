"""Zero-shot Image-to-Image Translation (pix2pix-zero). Parmar, Singh, Zhang, Li, Lu, Zhu, SIGGRAPH 2023.
arXiv:2302.03027

DDIM inversion predicts noise that is less like white noise than what sampling starts from, and then edits come through
less. So (section 3.1) each prediction ε is led towards N(0, 1) and no correlation before the inversion takes its step
with it:
    L_pair(ε) = Σ_p Σ_c Σ_axis (mean of η_p·(η_p shifted by δ along the axis))²,
over a pyramid of maps, η_0 = ε and η_p+1 = η_p averaged 2 × 2, down to 8 cells a side, with a random δ for each map,
and
    L_KL(ε) = var + mean² - 1 - log var.
K times ("reg steps"): R gradient steps along λ_pair/R·L_pair, each with a new δ ("rolls"), and one along λ_KL·L_KL. The
gradient is that in ε alone; none goes through the network.

As in the authors' code, to which λ = 20 belongs, and unlike the paper's text, pooled maps are not scaled back to unit
variance.
Differs from both: δ is 1 to half a side (the code draws 0, the map's own power, too) and the same for every picture of
a batch, and mean and variance are each picture's own, so that a picture is inverted as it would be alone. On v models
it is ε that moves.

Checked against: diffusers 0.42.1, which takes over the authors' losses.
"""
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ddim
from .grid import append_dims
from .method import SEED, Found, Method, Setting

SMALLEST = 8  # cells a side of the pyramid's last map
log = logging.getLogger("palimpsest")


def pyramid(eps: Tensor) -> list:
    """The maps η_p [B,channels,h,w] of ε [B,C,…,h,w], the largest first."""
    maps = [eps.flatten(1, -3)]
    while min(maps[-1].shape[-2:]) > SMALLEST:
        maps.append(F.avg_pool2d(maps[-1], 2))
    return maps


def draw(maps: list, generator: torch.Generator) -> list:
    """A shift δ for each channel of each map: 1 to half of its shorter side."""
    return [torch.randint(max(1, min(m.shape[-2:]) // 2), (m.shape[1],), generator=generator) + 1 for m in maps]


def pair_loss(eps: Tensor, shifts: list) -> Tensor:
    """L_pair [B] of ε [B,C,…,h,w], for shifts [channels] of each map."""
    loss = eps.new_zeros(len(eps))
    for eta, delta in zip(pyramid(eps), shifts):
        for axis in (-2, -1):
            moved = torch.stack([c.roll(d, axis) for c, d in zip(eta.unbind(1), delta.tolist())], 1)
            loss = loss + (eta * moved).mean((-2, -1)).square().sum(1)
    return loss


def kl_loss(eps: Tensor) -> Tensor:
    """L_KL [B] of ε [B,…], twice the divergence of its normal distribution from N(0, 1)."""
    mean, var = eps.flatten(1).mean(1), eps.flatten(1).var(1)
    return var + mean ** 2 - 1 - (var + 1e-7).log()


def descend(loss, eps: Tensor, rate: float) -> Tensor:
    """ε after one gradient step along the loss, in inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = eps.clone().requires_grad_()
        gradient, = torch.autograd.grad(loss(leaf).sum(), leaf)
    return eps - rate * gradient


def regularize(eps: Tensor, generator: torch.Generator, *, lambda_ac=20.0, lambda_kl=20.0, reg_steps=5,
               ac_rolls=5) -> Tensor:
    """ε [B,C,…,h,w], led towards white noise of unit variance."""
    for _ in range(reg_steps):
        for _ in range(ac_rolls if lambda_ac else 0):
            shifts = draw(pyramid(eps), generator)
            eps = descend(lambda e: pair_loss(e, shifts), eps, lambda_ac / ac_rolls)
        if lambda_kl:
            eps = descend(kl_loss, eps, lambda_kl)
    return eps


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, seed=0, data=1.0,
           **weights) -> list:
    """`ddim.invert` on eps and v models, with every ε regularized; weights: those of `regularize`. Without any, DDIM's
    bits. Warns once where the descent diverges."""
    generator, warned = torch.Generator().manual_seed(seed), []

    def regularized(x, sigma, **kwargs):
        denoised = model(x, sigma, **kwargs)
        level = append_dims(sigma, x)
        eps = (x - denoised) / level
        moved = regularize(eps, generator, **weights)
        before, after = (e.flatten(1).std(1) for e in (eps, moved))
        if not warned and not (after <= 2 * before.clamp(min=1)).all():  # nan too
            warned.append(sigma)
            log.warning("Regularisation diverges at sigma %.4g: it took the noise's standard deviation from %.2g to "
                        "%.2g, white noise has 1. Lower lambda_ac and lambda_kl: the paper's 20 belong to latents of "
                        "64 x 64, these are %d x %d.", sigma[0], before.max(), after.max(), *x.shape[-2:])
        return denoised if moved is eps else x - level * moved
    return ddim.invert(regularized, x, sigmas, extra_args, callback, disable, data=data)


def inverted(*args, **kwargs) -> Found:
    return Found(invert(*args, **kwargs))


METHOD = Method("Regularized", "Regularized Invert", inverted, takes=("data",), settings={
    "lambda_ac": Setting(20.0, 0.0, 1000.0), "lambda_kl": Setting(20.0, 0.0, 1000.0), "reg_steps": Setting(5, 0, 100),
    "ac_rolls": Setting(5, 1, 100), "seed": SEED},
    no_flow="{node} makes predicted noise white, this {model} MODEL predicts a flow, for which the paper has no such "
            "term: use DDIM Invert, or an eps or v model (SD1.x, SD2.x, SDXL).")
