"""Semantic Image Inversion and Editing using Rectified Stochastic Differential Equations (RF-Inversion). Rout, Chen,
Ruiz, Caramanis, Shakkottai, Chu, ICLR 2025. arXiv:2410.10792

A linear quadratic regulator draws the way from the picture Y_0 to noise of the prior, y_1 ~ N(0, I), as far as γ says:
    u(Y_t | y_1) = (y_1 - Y_t)/(1 - t),   û = u(Y_t) + γ·(u(Y_t | y_1) - u(Y_t)),   Y_{t+Δ} = Y_t + û·Δ   (Algorithm 1)
γ = 0 is Euler's inversion, γ = 1 plain noising with y_1. Such noise is more like the model's own and easier to edit.
The picture does not come back by itself: RF-Inversion Guide (guidance/rf_inversion.py) draws it back. On eps and v
models u is ε in x = z/√ᾱ, and what leads to y_1 is y_1 itself.

Differs from the paper: u at t = 0, where x0 cannot tell it, is asked at σ = 1e-6 with the latent in double precision.

Checked against: logtd/ComfyUI-Fluxtapoz@17c71be (numbers in tests/data/rf_inversion.json). diffusers' pipeline
(examples/community/pipeline_flux_rf_inversion.py@0036ae2) asks at i/N whatever the level is, which is not Algorithm 1.
"""
import torch
from torch import Tensor
from tqdm.auto import trange

from ..grid import in_double, noise_at, report_step
from ..method import SEED, Found, Method, Setting

LEAST = 1e-6  # where u is asked at t = 0


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, gamma=0.5, seed=0,
           flow=False) -> list:
    """S+1 latents from the clean x [B,C,…] to σ[0], in the order of sigmas [S+1], the clean one last.

    model(x, sigma [B], **extra_args) returns x0; sigmas descend to 0.
    """
    y1 = in_double(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x))
    path, levels = [in_double(x)], in_double(sigmas).flip(0)
    for i in trange(len(levels) - 1, disable=disable):
        y, t = path[-1], levels[i].clamp(min=LEAST)
        denoised, u = noise_at(model, y, t, t, y.dtype, extra_args)
        report_step(callback, i, y.float(), levels[i + 1], denoised.float())
        towards = (y1 - y) / (1 - levels[i]) if flow else y1
        path.append(y + (levels[i + 1] - levels[i]) * (u + gamma * (towards - u)))  # Algorithm 1
    return path[::-1]


def inverted(*args, **kwargs) -> Found:
    return Found(invert(*args, **kwargs))


METHOD = Method("RF-Inversion", "RF-Inversion Invert", inverted, steps=28, scheduler="simple", takes=("flow",),
                settings={"gamma": Setting(0.5, 0.0, 1.0), "seed": SEED})
