"""DNAEdit: Direct Noise Alignment for Text-Guided Rectified Flow Editing. Xie, Li, Li, Wu, Yi, Zhang, NeurIPS 2025.
arXiv:2506.01430

Direct noise alignment starts with drawn noise N and lets each step put right what the velocity says against it. From
the cleaner Z_t with t' > t,
    Z̃ = Z_t + (t' - t)/(1 - t)·(N - Z_t),   Δv = (Z̃ - Z_t)/(t' - t) - v(Z̃, t'),
    Z_t' = Z̃ - (t' - t)·Δv = Z_t + (t' - t)·v(Z̃, t'),   N' = N - (1 - t)·Δv.
So Z_t' moves along the velocity at Z̃, and Δx = (t' - t)·Δv, what lies between them, is kept. N' lies on the line that
starts in Z_t along v, so the next Z̃ is Z_t' + (t'' - t')·v: after the first step this is Uni-Inv's guess.

On the way back the target is asked where the source was, at Z + Δx. Mobile velocity guidance draws to a picture X̂ that
moves with the edit, from X̂ = the source:
    X̂' = X̂ + (t' - t)·(v_tar - v_src),   v = η·v_tar + (1 - η)·(Z - X̂')/t,   Z' = Z + (t' - t)·v,   now t' < t.
η is `mvg`: at 1 the target is followed freely. v_src is the inversion's own, the step from Z_t' to Z_t.

On eps and v models, which the paper has not, v is ε in x = z/√ᾱ and σ, and the first Z̃ is Z + σ·N.

Differs from the paper: the inversion runs to the noisiest level, and Replay's `start` is the paper's T_start.

Checked against: xiechenxi99/DNAEdit_code@f611eea, whole runs of its SD3 loop (numbers in tests/data/dna_edit.json).
"""
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import trange

from ..grid import CoupledState, first_step, noise_at, of_rows, recorded, recorded_theta, report_step
from ..method import SEED, Found, Kept, Method, Setting


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, seed=0,
           flow=False) -> tuple:
    """Algorithm 1: align drawn noise from the clean latent x [B,C,…] to σ[0]. sigmas [S+1] descend to 0, model(x, sigma
    [B], **extra_args) returns x0. Returns S+1 latents Z in the order of sigmas, the clean one last, and S moves Δx."""
    levels, path, moves = sigmas.flip(0), [x], []
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    v = noise - x if flow else noise
    for i in trange(len(levels) - 1, disable=disable):
        step, noisy = levels[i + 1] - levels[i], levels[i + 1]
        guess = path[-1] + step * v  # Z̃, Eq. 5
        denoised, v = noise_at(model, guess, noisy, noisy, x.dtype, extra_args)
        report_step(callback, i, guess, noisy, denoised)
        path.append(path[-1] + step * v)  # of N moved as Eq. 6 has it
        moves.append(guess - path[-1])  # Δx, Eq. 7
    return path[::-1], moves[::-1]


def denoise(model, x: Tensor, source, moved, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, mvg=0.8,
            announce=None) -> Tensor:
    """Algorithm 2: the latent at σ[-1], from x at σ[0]. source(i, x): the source's latent of level i, -1 for the clean
    one. moved(i, x): its Δx of the step that starts there."""
    picture = source(-1, x)  # X̂
    for i in trange(len(sigmas) - 1, disable=disable):
        step = sigmas[i + 1] - sigmas[i]
        v_src, share = (source(i + 1, x) - source(i, x)) / step, (1 - mvg) * step / sigmas[i]
        # Z' = base + slope·v_tar, with X̂' put in
        base, slope = x + share * (x - picture + step * v_src), step * (mvg - share)
        pair = [x + moved(i, x), base]
        state = CoupledState(pair, 0, sigmas[i], sigmas[i], slope, partial(seen, here=sigmas[i], there=sigmas[i + 1]),
                             {}, on_path=False, tied=True)
        denoised, v = state.ask(model, x.dtype, extra_args, announce)
        report_step(callback, i, pair[0], sigmas[i], denoised)
        picture = picture + step * (v - v_src)
        x = pair[1] + slope * v
    return x


def seen(inversion, here: Tensor, there: Tensor) -> tuple:
    """A CoupledState's source. If a method has no Δx, the network sees its own latents."""
    at, moves = inversion.at(float(here)), inversion.theta.get("dx")
    return at if moves is None else at + moves.tensor[inversion.step(float(here))].to(at), inversion.at(float(there))


def reverse(inversion):
    """Replay's solver; θ_F "dx" holds Δx, one a step."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None, announce=None):
        first = first_step(inversion, sigmas)
        return denoise(model, x, lambda i, x: of_rows(inversion.path[i if i < 0 else first + i], x),
                       lambda i, x: recorded(inversion, "dx", first + i, x), sigmas, extra_args, callback, disable,
                       mvg=inversion.settings["mvg"], announce=announce)
    return solve


def inverted(*args, mvg, **kwargs) -> Found:
    path, moves = invert(*args, **kwargs)
    return Found(path, {"dx": recorded_theta(moves)})


METHOD = Method("DNAEdit", "DNAEdit Invert", inverted, steps=28, scheduler="simple", takes=("flow",),
                settings={"mvg": Setting(0.8, 0.0, 1.0, needed=True), "seed": SEED}, theta={"dx": Kept("step", "step")},
                reverse=reverse, coupled=True, hands_on="the picture that moves with the edit")
