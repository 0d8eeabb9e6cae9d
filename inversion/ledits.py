"""LEDITS++: Limitless Image Editing using Text-to-Image Models. Brack, Friedrich, Kornmeier, Tsaban, Schramowski,
Kersting, Passos, CVPR 2024. arXiv:2311.16711, the inversion. (guidance/ledits.py holds its editing.)

Edit-friendly noise maps (inversion/ddpm.py) for a solver of few steps: DPM-Solver++ of second order as an SDE (Lu et
al. 2022, arXiv:2211.01095). In x = z/√ᾱ and σ its λ is -log σ; with D_i the denoised picture at level i, h_i = λ_{i+1}
- λ_i and r = σ_{i+1}/σ_i a step is
    x_{i+1} = r²·x_i + (1 - r²)·D̃_i + σ_{i+1}·√(1 - r²)·z_i,   D̃_i = D_i + (D_i - D_{i-1})·h_i/(2·h_{i-1}),
DDPM's step towards D̃; the first step and the last, where h is infinite, take D itself. Levels are noised
independently, and z_i is read off.

Differs from the authors' code (diffusers' LEditsPPPipelineStableDiffusion): the denoised pictures are kept, so that a
replay may start at any level as the inversion passed it; and the last map may be the residual itself, so that the
picture returns, or 0 as theirs is (`last_residual` in grid.py).

Checked against: diffusers 0.42.1, every map, with a source prompt and without.
"""
import torch
from torch import Tensor
from tqdm.auto import trange

from .grid import (
    LAST_RESIDUAL,
    NO_DDPM,
    first_step,
    independent_path,
    recorded,
    recorded_theta,
    report_step,
    source_where_equal,
    with_last_residual,
)
from .method import NOISE_MAPS, SEED, Found, Kept, Method


def towards(D: Tensor, before: Tensor | None, sigmas: Tensor, i: int) -> Tensor:
    """D̃ of step i, from the denoised picture D there and the one at the level before, or None."""
    if before is None or sigmas[i + 1] == 0:
        return D
    h, h0 = (sigmas[i] / sigmas[i + 1]).log(), (sigmas[i - 1] / sigmas[i]).log()
    return D + (D - before) * h / (2 * h0)  # D̃_i


def mean_scale(x: Tensor, D: Tensor, n: Tensor, c: Tensor) -> tuple:
    """(mean, factor) of the step from level σ = n to c towards D.

    factor: multiplies the step's map. It is 1 for the residual of the last step.
    """
    r = c / n
    return D + r ** 2 * (x - D), c * (1 - r ** 2).sqrt() if c > 0 else 1


def noise_maps(model, path, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, together=1) -> tuple:
    """(path, S maps z, S denoised pictures), all [B,C,…], of the steps along path, S+1 latents in the order of sigmas
    [S+1].

    The path comes back with each latent as sampling will reach it. together: how many levels share a model call.
    """
    path, maps, denoised, S, B = list(path), [], [], len(sigmas) - 1, len(path[-1])
    for first in trange(0, S, together, disable=disable):
        steps = range(first, min(first + together, S))
        x, level = torch.cat([path[i] for i in steps]), sigmas[first:steps[-1] + 1].repeat_interleave(B)
        for i, D in zip(steps, model(x, level, **(extra_args or {})).split(B)):
            D_tilde = towards(D, denoised[-1] if denoised else None, sigmas, i)
            mean, scale = mean_scale(path[i], D_tilde, sigmas[i], sigmas[i + 1])
            maps.append((path[i + 1] - mean) / scale)  # z_i
            denoised.append(D)
            if i + 1 < S:
                path[i + 1] = mean + scale * maps[-1]
        report_step(callback, steps[-1], path[steps[-1]], sigmas[first], D)
    return path, maps, denoised


def reverse(inversion):
    """Replay's solver; θ_F "z" holds the noise maps, "denoised" the pictures, one a step."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None):
        first, levels = first_step(inversion, sigmas), inversion.sigmas.to(sigmas)
        x = source_where_equal(inversion, first, x)
        before = recorded(inversion, "denoised", first - 1, x) if first else None
        for i in trange(first, first + len(sigmas) - 1, disable=disable):
            D = model(x, levels[i] * x.new_ones(len(x)), **(extra_args or {}))
            report_step(callback, i - first, x, levels[i], D)
            mean, scale = mean_scale(x, towards(D, before, levels, i), levels[i], levels[i + 1])
            x, before = mean + scale * recorded(inversion, "z", i, x), D
        return x
    return solve


def inverted(model, x, sigmas, *args, seed, last_residual: str, **kwargs) -> Found:
    path, maps, denoised = noise_maps(model, independent_path(x, sigmas, seed), sigmas, *args, **kwargs)
    return Found(path, {"z": recorded_theta(with_last_residual(maps, sigmas, last_residual)),
                        "denoised": recorded_theta(denoised)})


METHOD = Method("LEDITS++", "LEDITS++ Invert", inverted, steps=30, cfg=1.0, takes=("together",), no_flow=NO_DDPM,
                settings={"seed": SEED, "last_residual": LAST_RESIDUAL},
                theta=NOISE_MAPS | {"denoised": Kept("step", "step")}, trajectory="independent", reverse=reverse,
                hands_on="the denoised picture of the step before", residual="z")
