"""Delta Denoising Score (DDS). Hertz, Aberman, Cohen-Or, ICCV 2023. arXiv:2304.07090

What a diffusion model finds wrong with a noised picture under a prompt leads to pictures of that prompt, and blurs: a
part of it is no fault of the picture's. The source ẑ under its own prompt ŷ, where nothing is to be changed, shows that
part alone, so it is taken away (Eq. 3),
    ∇_z L_DDS = w(t)·(ε(z_t, y, t) - ε(ẑ_t, ŷ, t)),   z_t = √ᾱ_t·z + √(1-ᾱ_t)·ε,   ẑ_t = √ᾱ_t·ẑ + √(1-ᾱ_t)·ε,
both ε(·) under classifier-free guidance. z starts as ẑ and goes down that gradient by SGD, with a new ε and t at each
iteration and no gradient through the network.

In x = z_t/√ᾱ_t and σ the noised latents are a·z + σ·ε and the prediction is (x - a·x0)/σ, with a = 1. On flow models a
is 1 - σ, and the prediction is the noise that x0 implies, x + (1 - σ)·v of the velocity v. Velocities themselves hold
the picture: those of two predictions without fault differ by ẑ - z, which would drive z away from ẑ without end. w is
that of the authors' notebook, which sums the loss over the latent, multiplies by 2000 and divides by its 64 × 64 cells.

Differs from the paper: all rows share one t an iteration, where the notebook draws one a row, since what the host is
given may depend on t. The notebook's w falls with larger latents. Here it stays the same.
Checked against: authors' code google/prompt-to-prompt@9c472e4, three iterations of DDS_zeroshot.ipynb.
"""
import torch
from torch import Tensor
from tqdm.auto import trange

from ..host.guiders import prompted
from ..inversion.grid import report_step

WEIGHT = 2000 / 64 ** 2


def levels(sampling, iterations: int, start: float, end: float, generator) -> Tensor:
    """[iterations + 1] σ at times drawn uniformly between two of the host's percents, and 0 at the end."""
    percents = torch.empty(iterations).uniform_(start, end, generator=generator)
    return torch.tensor([*(float(sampling.percent_to_sigma(p)) for p in percents.tolist()), 0.0])


def descend(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, rate, generator,
            flow=False, mask=None) -> Tensor:
    """z [B,C,…] after one iteration at each σ but the last, from the clean latent x.

    rate: SGD's.
    generator: of the noises.
    flow: whether the model is a flow model.
    mask: where z may change, 0 to 1.
    """
    source, rows = x, x.new_ones(len(x))
    step = rate * WEIGHT * (1 if mask is None else mask)
    for i in trange(len(sigmas) - 1, disable=disable):
        sigma = sigmas[i]
        a = 1 - sigma if flow else 1
        noise = torch.randn(x.shape, generator=generator).to(x)

        def eps(z, name):
            noised = a * z + sigma * noise
            return (noised - a * prompted(model, extra_args, name, noised, sigma * rows)) / sigma

        x = x - step * (eps(x, "target") - eps(source, "source"))  # Eq. 3
        report_step(callback, i, x, sigma, x)
    return x
