"""FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models. Kulikov, Kleiner, Huberman-Spiegelglas,
Michaeli, ICCV 2025. arXiv:2412.08629

A direct path leads from the picture X to the edited one. At each level the picture is noised anew, and both prompts are
asked with the same noise:
    Z_src = (1-t)·X + t·N,   Z_tar = Z_FE + Z_src - X,   V_Δ = V(Z_tar, c_tar) - V(Z_src, c_src),   (Eq. 8 and 9)
    Z_FE' = Z_FE + (t' - t)·V_Δ,   from Z_FE = X at the level where it starts.                      (Algorithm 1)
Here Z_src is the INVERSION's latent of the level and Z_tar the one that is sampled. With V = (Z - D)/t, D the denoised
picture, and the source's part X - D_src known before sampling (θ_F), V_Δ = (Z_FE - X - (D_tar + (X - D_src) - X))/t. In
x = z/√ᾱ and σ eps and v models have the same V, so they take the same step; the paper has flow models alone. `cfg` is
the source's guidance, Replay's start the paper's n_max.

FlowAlign: Trajectory-Regularized, Inversion-Free Flow-based Image Editing. Kim, Hong, Park, Ye, 2025. arXiv:2505.23145
The target's guidance starts from the source's prompt, which is the negative of sampling, and ζ draws each step to the
source: Z_FE' += ζ·(D_src - D_tar). Its ζ is 0.01, here `align`.

V_Δ is the mean over n_avg noises of a level, each a row of the INVERSION. The last n_min steps are plain sampling from
Z_tar of the first noise, and miss nothing of the source.

Checked against: fallenshock/FlowEdit@457f402, whole runs of its SD3 loop, n_avg and n_min among them, and of its Flux
loop on equal weights (bench/flow_peers.py); FlowAlign/FlowAlign@29c6fe1, a whole run (numbers in
tests/data/flow_edit.json).
"""
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import trange

from ..ddcm import MISSED, along, missed
from ..grid import independent_path, recorded_theta, report_step
from ..method import SEED, Found, Method, Setting


def noised_path(x: Tensor, sigmas: Tensor, seed: int, flow=False) -> list:
    """S+1 latents in the order of sigmas, the clean x [B,C,…] last, each level noised independently."""
    path = independent_path(x, sigmas, seed)
    return [z - s * x for z, s in zip(path, sigmas)] if flow else path  # Z_src, Eq. 8


def denoise(model, x: Tensor, source, missed, sigmas: Tensor, extra_args=None, callback=None, disable=None, *,
            align=0.0, noises=(1, 1), plain=0.0) -> Tensor:
    """The latent at σ[-1], from Z_tar [rows,C,…] at σ[0].

    source(i, x): the source's latent of level i, -1 for the clean one.
    missed(i, x): what the model misses of it.
    noises: (n_avg, pictures); rows are n_avg runs of the pictures, or several times these, and the result has one run.
    plain: σ from which on the target is sampled alone.
    """
    def mean(rows, of=slice(None)):
        split = rows.unflatten(0, (-1, *noises))
        return split[:, of].mean(1, keepdim=True).expand_as(split).flatten(0, 2)

    for i in trange(len(sigmas) - 1, disable=disable):
        alone, dt = sigmas[i] <= plain, sigmas[i + 1] - sigmas[i]
        x = mean(x, slice(1)) if alone else x
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        report_step(callback, i, x, sigmas[i], denoised)
        if alone:
            x = x + dt * (x - denoised) / sigmas[i]
            continue
        edit = x - source(i, x)  # Z_FE - X
        moved = mean(denoised + missed(i, x) - source(-1, x))  # D_tar - D_src
        velocity = (edit - moved) / sigmas[i]  # V_Δ of Eq. 9
        x = source(i + 1, x) + edit + dt * velocity - align * moved  # Algorithm 1
    return x.unflatten(0, (-1, *noises))[:, 0].flatten(0, 1)


def inverted(model, x, sigmas, *args, seed, flow, align, n_avg, n_min, together=1, **kwargs) -> Found:
    def in_parts(rows, sigma, **more):  # n_avg runs of x may be more than fit one forward
        most = together * len(x)
        return torch.cat([model(*part, **more) for part in zip(rows.split(most), sigma.split(most))])

    path = noised_path(x.repeat(n_avg, *[1] * (x.ndim - 1)), sigmas, seed, flow)
    asked = max(len(sigmas) - 1 - n_min, 0)
    found = missed(in_parts, [*path[:asked], path[-1]], sigmas[:asked + 1], *args, together=max(1, together // n_avg),
                   **kwargs)
    return Found(path, {"missed": recorded_theta([*found, *[torch.zeros_like(path[-1])] * (len(path) - 1 - asked)])})


def reverse(inversion):
    n_avg, n_min = (inversion.settings.get(name, usual) for name, usual in (("n_avg", 1), ("n_min", 0)))
    plain = inversion.sigmas[-1 - min(n_min, len(inversion.sigmas) - 1)]
    return along(partial(denoise, noises=(n_avg, inversion.pictures), plain=plain), "align")(inversion)


METHOD = Method("FlowEdit", "FlowEdit Invert", inverted, cfg=1.0, takes=("flow", "together"),
                settings={"seed": SEED, "align": Setting(0.0, 0.0, 1.0, needed=True),
                          "n_avg": Setting(1, 1, 16, needed=True), "n_min": Setting(0, 0, 10_000, needed=True)},
                theta=MISSED, trajectory="independent", reverse=reverse, residual="missed", every=True)
