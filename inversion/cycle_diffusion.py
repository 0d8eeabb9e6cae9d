"""A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and Guidance (CycleDiffusion). Wu, De la
Torre, ICCV 2023. arXiv:2210.05559

DPM-Encoder: x_1 … x_T are drawn from the posterior of the picture,
    x_T ~ q(x_T | x_0),   x_{t-1} ~ q(x_{t-1} | x_t, x_0),   z_t = (x_{t-1} - μ_T(x_t, t)) / σ_t,
so that the model's own stochastic process with these z gives x_0 back, at any η > 0. CycleDiffusion then
decodes with the target prompt. In x = z/√ᾱ the posterior of DDIM's family is the step of `ddpm.py` with x_0 in the
place of the denoised picture; the maps z and the way back are the same. With the paper's small η the levels share most
of their noise.

Differs from the paper: the residual of the step to σ = 0, which has no noise, is z's last entry.

Checked against: the paper's equations.
"""
import torch
from torch import Tensor

from .ddpm import down_up, noise_maps, reverse
from .grid import NO_DDPM, recorded_theta
from .method import NOISE_MAPS, SEED, Found, Method, Setting


def posterior_path(x: Tensor, sigmas: Tensor, seed: int, eta=0.1) -> list:
    """S+1 latents in the order of sigmas [S+1], descending to 0, the clean x [B,C,…] last. eta: in (0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(x.shape, generator=generator).to(x)

    path = [x + sigmas[0] * draw()]  # x_T ~ q(x_T | x_0)
    for n, c in zip(sigmas[:-2], sigmas[1:-1]):
        down, up = down_up(n, c, eta)
        path.append(x + down * (path[-1] - x) / n + up * draw())  # x_{t-1} ~ q(x_{t-1} | x_t, x_0)
    return [*path, x]


def inverted(model, x, sigmas, *args, seed, eta, **kwargs) -> Found:
    path, maps = noise_maps(model, posterior_path(x, sigmas, seed, eta), sigmas, *args, eta=eta, **kwargs)
    return Found(path, {"z": recorded_theta(maps)})


METHOD = Method("CycleDiffusion", "CycleDiffusion Invert", inverted, steps=100, takes=("together",), no_flow=NO_DDPM,
                settings={"eta": Setting(0.1, 0.01, 1.0, needed=True), "seed": SEED}, theta=NOISE_MAPS,
                trajectory="independent", reverse=reverse, residual="z")
