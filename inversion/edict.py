"""EDICT: Exact Diffusion Inversion via Coupled Transformations. Wallace, Gokul, Naik, CVPR 2023. arXiv:2211.12446

Two latents x and y take turns: each is moved with the noise predicted from the other, then both are drawn together,
    x_inter = a_t·x_t + b_t·ε(y_t, t)            x_{t-1} = p·x_inter + (1-p)·y_inter
    y_inter = a_t·y_t + b_t·ε(x_inter, t)        y_{t-1} = p·y_inter + (1-p)·x_{t-1}
Every line is affine in what it changes and reads nothing else that it changes, so it is undone exactly, in reverse
order. As the authors do, x and y take turns at going first. In x = z/√ᾱ the move a·z + b·ε is Euler's x + (σ' - σ)·ε,
and the mixing stays as it is, both latents being of one level.

Differs from the paper: the latents are in double precision, the network in its own; σ = 0 is the clean end (ᾱ = 1).
Checked against: salesforce/EDICT@c35a81f (numbers in tests/data/exact.json).
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
    recorded,
    recorded_theta,
    report_step,
    seen_as,
    source_where_equal,
)
from .method import Found, Kept, Method, Setting

P = 0.93


def denoise_step(pair: list, turn: int, n: Tensor, c: Tensor, noise, p: float) -> list:
    """One step from level n to the cleaner c; pair[turn] goes first. noise(pair, sees, level) predicts at n from
    pair[sees], which is of that level, and may move the pair first."""
    pair = list(pair)
    for goes, level in ((turn, n), (1 - turn, c)):
        eps = noise(pair, 1 - goes, level)
        pair[goes] = pair[goes] + (c - n) * eps  # x_inter, then y_inter
    x = p * pair[0] + (1 - p) * pair[1]
    return [x, p * pair[1] + (1 - p) * x]  # x_{t-1}, y_{t-1}


def invert_step(pair: list, turn: int, n: Tensor, c: Tensor, noise, p: float) -> list:
    """The exact inverse of `denoise_step`, from level c to the noisier n."""
    pair = unmixed(pair, p)
    for goes, level in ((1 - turn, c), (turn, n)):
        pair[goes] = pair[goes] - (c - n) * noise(pair, 1 - goes, level)
    return pair


def unmixed(pair: list, p: float) -> list:
    """x_inter and y_inter of the step that ended with this pair."""
    x, y = pair
    y = (y - (1 - p) * x) / p
    return [(x - (1 - p) * y) / p, y]


def _walk(step, pair, levels, turns, model, dtype, extra_args, callback, disable, p, seen_as, announce=None):
    """Yields the pair after each step between successive levels; two model calls a step."""
    for i in trange(len(turns), disable=disable):
        n, c = sorted(levels[i:i + 2], reverse=True)
        seen = {}

        def noise(pair, sees, level):
            known = partial(source, n=n, c=c, goes=1 - sees, second=level is c, p=p)
            state = CoupledState(pair, sees, level, n, c - n, known, seen_as, on_path=False)
            seen["x0"], eps = state.ask(model, dtype, extra_args, announce)
            return eps

        before, pair = pair, step(pair, turns[i] % 2, n, c, noise, p)
        report_step(callback, i, before[0].to(dtype), n, seen["x0"])
        yield pair


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, p=P, **seen_as) -> list:
    """The coupled latents from the clean x [B,C,…], with y = x there, to σ[0]: S+1 pairs [x, y] in the order of sigmas,
    the clean one last. sigmas [S+1] descend to 0."""
    start = [in_double(x)] * 2
    turns = range(len(sigmas) - 2, -1, -1)
    found = _walk(invert_step, start, in_double(sigmas).flip(0), turns, model, x.dtype, extra_args, callback, disable,
                  p, seen_as)
    return [start, *found][::-1]


def source(inversion, n: Tensor, c: Tensor, goes: int, second: bool, p: float) -> tuple:
    """A CoupledState's source in a step from n to c, where pair[goes] goes now. If a method has no
    y, both are its latents."""
    ends = unmixed(_pair_at(inversion, c), p)
    return (ends if second else _pair_at(inversion, n))[1 - goes], ends[goes]


def _pair_at(inversion, sigma: Tensor) -> list:
    x, apart = in_double(inversion.at(float(sigma))), inversion.theta.get("y_minus_x")
    return [x, x if apart is None else x + apart.tensor[inversion.step(float(sigma))]]


def denoise(model, x: Tensor, y: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, p=P, first=0,
            announce=None, **seen_as) -> list:
    """The pair [x, y] at σ[-1], from the pair at σ[0], which is level `first` of the whole schedule."""
    start, turns = [in_double(x), in_double(y)], range(first, first + len(sigmas) - 1)
    return [*_walk(denoise_step, start, in_double(sigmas), turns, model, x.dtype, extra_args, callback, disable, p,
                   seen_as, announce)][-1]


def reverse(inversion):
    """Replay's solver: y starts beside x as far as it stood in the inversion (θ_F "y_minus_x", one a level)."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None, announce=None):
        first = first_step(inversion, sigmas)
        x = source_where_equal(inversion, first, x)
        y = in_double(x) + recorded(inversion, "y_minus_x", first, in_double(x))
        pair = denoise(model, x, y, sigmas, extra_args, callback, disable, p=inversion.settings["p"], first=first,
                       announce=announce, **seen_as(inversion.fingerprint))
        return pair[0].to(x)
    return solve


def inverted(*args, **kwargs) -> Found:
    pairs = invert(*args, **kwargs)
    return Found([x for x, _ in pairs], {"y_minus_x": recorded_theta([y - x for x, y in pairs], "level")})


def check(*, steps, p, **_):
    """The way to the noise multiplies what parts the two latents by p⁻² a step."""
    if -2 * steps * math.log10(p) > EXPANSION:
        raise ValueError(f"With p {p:g}, {steps} steps of inversion multiply what parts the two latents by "
                         f"10^{-2 * steps * math.log10(p):.0f}, more than a latent resolves: raise p (0.93 to 100 "
                         "steps, 0.96 to 200), or take fewer steps.")


METHOD = Method("EDICT", "EDICT Invert", inverted, cfg=1.0, settings={"p": Setting(P, 0.5, 1.0, needed=True)},
                check=check, guided=True, theta={"y_minus_x": Kept("level", "step")}, reverse=reverse, coupled=True,
                hands_on="the second latent")
