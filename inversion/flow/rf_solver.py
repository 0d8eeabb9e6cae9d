"""Taming Rectified Flow for Inversion and Editing (RF-Solver). Wang, Pu, Qi, Guo, Ma, Huang, Chen, Li, Shan, ICML 2025.
arXiv:2411.04746

A step along v has a second term of its Taylor expansion, whose derivative is a difference quotient over half the step:
    Z_{i+1} = Z_i + (t_{i+1} - t_i)·v(Z_i, t_i) + ½(t_{i+1} - t_i)²·v'(Z_i, t_i),
    v'(Z_i, t_i) = (v(Z_i + ½(t_{i+1} - t_i)·v(Z_i, t_i), t_i + ½(t_{i+1} - t_i)) - v(Z_i, t_i)) / (½(t_{i+1} - t_i)).
Put together, v(Z_i, t_i) cancels: it is the explicit midpoint rule. The same steps lead to the noise and back. The
INVERSION has the middles among its levels, so that editors read the source where the way back asks the network. On eps
and v models v is ε in x = z/√ᾱ, and the steps are halved in σ.

Differs from the paper: v at t = 0, where x0 cannot tell it, is asked at σ = 1e-6 with the latent in double precision.
Feature sharing is an editor's work, not the inversion's.

Checked against: wangjiangshan0725/RF-Solver-Edit@3388e29, both ways (numbers in tests/data/rf_solver.json).
"""
from collections.abc import Iterator
from functools import partial

from torch import Tensor
from tqdm.auto import trange

from ..grid import CoupledState, in_double, report_step
from ..method import Found, Method

LEAST = 1e-6  # where v is asked at t = 0


def walk(model, x: Tensor, levels: Tensor, extra_args=None, callback=None, disable=None, *, reuse=False,
         announce=None) -> Iterator:
    """Yields the latents in the middle and at the end of each step between successive levels, in either direction.

    reuse: a step begins with the velocity in the middle of the last one.
    """
    def ask(pair, level, slope, to):
        level = level.clamp(min=LEAST)
        state = CoupledState(pair, 0, level, level, slope, partial(source, here=level, there=to), {}, tied=True)
        return state.ask(model, x.dtype, extra_args, announce)

    v = None
    for i in trange(len(levels) - 1, disable=disable):
        here, there, middle = levels[i], levels[i + 1], (levels[i] + levels[i + 1]) / 2
        if v is None or not reuse:  # else it is v̂ of FireFlow's Eq. 10
            pair = [x, x]
            _, v = ask(pair, here, middle - here, middle)
            x = pair[1]  # an editor may have moved it
        pair = [x + (middle - here) * v, x]  # FireFlow's Eq. 11
        denoised, v = ask(pair, middle, there - here, there)
        report_step(callback, i, x.float(), here, denoised.float())
        x = pair[1] + (there - here) * v  # FireFlow's Eq. 12
        yield pair[0], x


def source(inversion, here: Tensor, there: Tensor) -> tuple:
    """A CoupledState's source: the trajectory's own latents."""
    return inversion.at(float(here)), inversion.at(float(there))


def invert(model, x: Tensor, sigmas: Tensor, *args, **how) -> list:
    """2S+1 latents from the clean x [B,C,…] to σ[0], in the order of sigmas [S+1] with their middles, clean one last.

    model(x, sigma [B], **extra_args) returns x0; sigmas descend to 0. args, how: `walk`'s.
    """
    x = in_double(x)
    return [x, *(z for step in walk(model, x, sigmas.to(x).flip(0), *args, **how) for z in step)][::-1]


def denoise(model, x: Tensor, sigmas: Tensor, *args, **how) -> Tensor:
    """The latent at σ[-1], from x at σ[0]. args, how: `walk`'s."""
    return [x, *(end for _, end in walk(model, x, sigmas, *args, **how))][-1]


def both_ways(**how) -> dict:
    """What a METHOD of these steps says of its ways there and back."""
    def inverted(*args, **kwargs) -> Found:
        return Found(invert(*args, **kwargs, **how))

    return {"invert": inverted, "reverse": lambda inversion: partial(denoise, **how), "middles": True,
            "coupled": True, "takes": ()}


METHOD = Method("RF-Solver", "RF-Solver Invert", steps=25, scheduler="simple", **both_ways())
