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

Differs from the paper: one noise a level (n_avg = 1) and no last steps of plain sampling (n_min = 0), its defaults.

Checked against: fallenshock/FlowEdit@457f402, whole runs of its SD3 loop; FlowAlign/FlowAlign@29c6fe1, a whole
run (numbers in tests/data/flow_edit.json).
"""
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
            align=0.0) -> Tensor:
    """The latent at σ[-1], from Z_tar at σ[0]. source(i, x): the source's latent of level i, -1 for the clean one.
    missed(i, x): what the model misses of it."""
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        report_step(callback, i, x, sigmas[i], denoised)
        edit = x - source(i, x)  # Z_FE - X
        moved = denoised + missed(i, x) - source(-1, x)  # D_tar - D_src
        velocity = (edit - moved) / sigmas[i]  # V_Δ of Eq. 9
        x = source(i + 1, x) + edit + (sigmas[i + 1] - sigmas[i]) * velocity - align * moved  # Algorithm 1
    return x


def inverted(model, x, sigmas, *args, seed, flow, align, **kwargs) -> Found:
    path = noised_path(x, sigmas, seed, flow)
    return Found(path, {"missed": recorded_theta(missed(model, path, sigmas, *args, **kwargs))})


METHOD = Method("FlowEdit", "FlowEdit Invert", inverted, cfg=1.0, takes=("flow", "together"),
                settings={"seed": SEED, "align": Setting(0.0, 0.0, 1.0, needed=True)}, theta=MISSED,
                trajectory="independent", reverse=along(denoise, "align"), residual="missed", every=True)
