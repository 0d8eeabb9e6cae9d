"""Denoising Diffusion Implicit Models. Song, Meng, Ermon, ICLR 2021. arXiv:2010.02502

The deterministic sampler (η = 0) discretises an ODE, so it can be followed backwards, from the picture to its noise
(section 4.3). Mokady et al., Null-text Inversion, CVPR 2023, arXiv:2211.09794, section 3.1, use it for editing: with
the source prompt and guidance 1, at the scheduler's own levels.

In the paper's z = √ᾱ·x0 + √(1-ᾱ)·ε a step from level c to the noisier level n (Eq. 13, reversed) is
    z_n/√ᾱ_n = z_c/√ᾱ_c + (√((1-ᾱ_n)/ᾱ_n) - √((1-ᾱ_c)/ᾱ_c))·ε(z_c, n).
Here x = z/√ᾱ and σ = √((1-ᾱ)/ᾱ), so it is x_n = x_c + (σ_n - σ_c)·ε: an Euler step. The unknown z_n is replaced by z_c
and the network is told level n, as the authors' code and diffusers' DDIMInverseScheduler do; in x that guess is scaled
by √((1+σ_n²)/(1+σ_c²)), with σ_data² for 1 on EDM models. Flow models, x = (1-σ)·x0 + σ·ε, take the same step
from an unscaled guess.

Checked against: diffusers 0.42.1, DDIMInverseScheduler at every level.
"""
from torch import Tensor
from tqdm.auto import trange

from .grid import report_step, scale
from .method import Found, Method


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, flow=False,
           data=1.0) -> list:
    """Follow the reverse process from the clean latent x [B,C,…] to σ[0]: one model call a step, none at σ = 0.

    model(x, sigma [B], **extra_args) returns x0; sigmas [S+1] descend to 0; callback gets k-diffusion's dict; flow and
    data: `scale`'s. Returns S+1 latents in the order of sigmas, the clean one last.
    """
    extra_args = extra_args or {}
    path = [x]
    rows = x.new_ones(x.shape[0])
    levels = sigmas.flip(0)
    for i in trange(len(levels) - 1, disable=disable):
        clean, noisy = levels[i], levels[i + 1]
        guess = x * scale(clean, noisy, flow, data)
        denoised = model(guess, noisy * rows, **extra_args)
        eps = (guess - denoised) / noisy
        report_step(callback, i, guess, noisy, denoised)
        x = x + (noisy - clean) * eps  # Eq. 13, reversed
        path.append(x)
    return path[::-1]


def inverted(*args, **kwargs) -> Found:
    return Found(invert(*args, **kwargs))


METHOD = Method("DDIM", "DDIM Invert", inverted)
