"""Exact Diffusion Inversion via Bi-directional Integration Approximation. Zhang, Lewis, Kleijn, ECCV 2024.
arXiv:2307.10829

A DDIM step and a DDIM inversion step from the same z_i need one prediction ε(z_i, i) only. The change from z_{i+1} to
z_i is integrated again with it, backwards, and the part γ of what the first integration missed is put right in the
next:
    z_{i-1} = a_i·z_i + b_i·ε(z_i, i) + γ·[z_{i+1} - (z_i/a_{i+1} - b_{i+1}/a_{i+1}·ε(z_i, i))].
This is linear in z_{i+1}, so from z_{i-1} and z_i it gives z_{i+1} exactly. With x = z·√(1+σ²) both bracketed steps are
Euler's,
    x_{i-1} = D_i + o_i,   o_i = γ·√(1+σ_{i-1}²)/√(1+σ_{i+1}²)·(x_{i+1} - U_i),   D_i, U_i = x_i + (σ_{i∓1} -
    σ_i)·ε(x_i, σ_i),
and flow models take it without the roots. The first level comes from one step of DDIM inversion.

γ = 1 is the paper's choice for 40 steps, 0.5 for 10: γ < 1 forgets in sampling, so in inversion what was missed grows
as γ^-S.

Differs from the paper: a recorded o_i takes the place of x_{i+1} where sampling starts, at any level (one model call
more), and there the target's D_i is used; the latents are in double precision, the network in its own.

Checked against: the paper's equations.
"""
import math
from functools import partial

from torch import Tensor
from tqdm.auto import trange

from .grid import (
    EXPANSION,
    CoupledState,
    first_step,
    in_double,
    noise_at,
    recorded,
    recorded_theta,
    report_step,
    scale,
    seen_as,
    source_where_equal,
)
from .method import OFFSETS, Found, Method, Setting

GAMMA = 0.5


def weight(clean: Tensor, noisy: Tensor, gamma: float, **seen_as):
    """γ in x: what multiplies x_{i+1} - U_i, between the levels σ_{i-1} = clean and σ_{i+1} = noisy."""
    return gamma * scale(noisy, clean, **seen_as)


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, gamma=GAMMA,
           **seen_as) -> tuple:
    """Follow the steps back from the clean x [B,C,…] to σ[0]. sigmas [S+1] descend to 0.

    Returns S+1 latents in the order of sigmas, the clean one last, and the S offsets o of the steps that start there.
    """
    dtype, s = x.dtype, in_double(sigmas).flip(0)
    _, eps = noise_at(model, in_double(x), s[0], s[1], dtype, extra_args, **seen_as)
    path, offsets = [in_double(x), in_double(x) + (s[1] - s[0]) * eps], []
    for i in trange(1, len(s), disable=disable):
        x = path[i]
        denoised, eps = noise_at(model, x, s[i], s[i], dtype, extra_args, **seen_as)
        offsets.append(path[i - 1] - (x + (s[i - 1] - s[i]) * eps))  # o_i = x_{i-1} - D_i
        if i + 1 < len(s):
            path.append(x + (s[i + 1] - s[i]) * eps + offsets[-1] / weight(s[i - 1], s[i + 1], gamma, **seen_as))
        report_step(callback, i - 1, x.to(dtype), s[i], denoised)
    return path[::-1], offsets[::-1]


def denoise(model, x: Tensor, offset: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *,
            gamma=GAMMA, announce=None, **seen_as) -> Tensor:
    """The latent at σ[-1], from x at σ[0] and the offset of the step that starts there.

    D_i + o_i = base + slope·ε(x_i, σ_i), where base holds what does not depend on the prediction."""
    dtype, s = x.dtype, in_double(sigmas)
    x = before = in_double(x)
    for i in trange(len(s) - 1, disable=disable):
        base, slope = x + offset, s[i + 1] - s[i]
        if i:
            w = weight(s[i + 1], s[i - 1], gamma, **seen_as)
            base, slope = x + w * (before - x), slope - w * (s[i - 1] - s[i])
        pair = [x, base]
        state = CoupledState(pair, 0, s[i], s[i], slope, partial(source, here=s[i], there=s[i + 1]), seen_as, tied=True)
        denoised, eps = state.ask(model, dtype, extra_args, announce)
        report_step(callback, i, pair[0].to(dtype), s[i], denoised)
        before, x = pair[0], pair[1] + slope * eps
    return x


def source(inversion, here: Tensor, there: Tensor) -> tuple:
    """A CoupledState's source: the trajectory's own latents."""
    return inversion.at(float(here)), inversion.at(float(there))


def reverse(inversion):
    """Replay's solver; θ_F "offset" holds o, one a step."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None, announce=None):
        first = first_step(inversion, sigmas)
        x = source_where_equal(inversion, first, x)
        offset = recorded(inversion, "offset", first, in_double(x))
        return denoise(model, x, offset, sigmas, extra_args, callback, disable, gamma=inversion.settings["gamma"],
                       announce=announce, **seen_as(inversion.fingerprint)).to(x)
    return solve


def inverted(*args, **kwargs) -> Found:
    path, offsets = invert(*args, **kwargs)
    return Found(path, {"offset": recorded_theta(offsets)})


def check(*, steps, gamma, **_):
    if -steps * math.log10(gamma) > EXPANSION:
        raise ValueError(f"With gamma {gamma:g}, {steps} steps of inversion multiply what each step misses by "
                         f"10^{-steps * math.log10(gamma):.0f}, more than a latent resolves: raise gamma (1.0 from "
                         "40 steps on), or take fewer steps (10 at 0.5).")


METHOD = Method("BDIA", "BDIA Invert", inverted, steps=10, cfg=1.0, settings={
    "gamma": Setting(GAMMA, 0.1, 1.0, needed=True)}, check=check, guided=True, theta=OFFSETS, reverse=reverse,
    coupled=True, hands_on="the latent of the step before")
