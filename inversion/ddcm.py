"""Inversion-Free Image Editing with Natural Language (InfEdit). Xu, Huang, Pan, Ma, Chai, CVPR 2024. arXiv:2312.04965

Denoising diffusion consistent models (DDCM), and virtual inversion. With all of DDIM's variance as fresh noise, σ_t² =
1 - ᾱ_{t-1}, a step has the form of multi-step consistency sampling, z_{t-1} = √ᾱ_{t-1}·f(z_t) + √(1-ᾱ_{t-1})·ε_{t-1}.
Where the picture z_0 is known, ε^cons = (z_t - √ᾱ_t·z_0)/√(1-ᾱ_t) gives f = z_0 for it with no network. So the source
is noised to every level, needs no inversion, and returns exactly. The target starts from the same noise, and
takes ε^cons + ε(z_t^tgt, c_tgt) - ε(z_t^src, c_src) for its own. In x = z/√ᾱ, with D the denoised picture, that is

    x_0 <- D(x_tgt, c_tgt) + (x_0^src - D(x_src, c_src)),    x'_tgt = x'_src + (x_0 - x_0^src).

What the model misses of the source, x_0^src - D_src, is so carried into the target. It is known before sampling, and is
θ_F here. η is the share of the variance that is fresh. Under 1 the source's levels share noise, and the rest of the
target's noise is predicted: √(1-η)·σ'·(ε_tgt - ε_src) is added to x'_tgt.

The paper's unified attention control is Prompt-to-Prompt with self-attention at all resolutions, at the settings of the
authors' benchmark (both schedules 0.7): its layout branch then leaves the source only after the last map was replaced.

Differs from the paper: x_T is the noised picture; the authors' code starts from noise alone, and takes its ε^cons.
Checked against: sled-group/InfEdit@eaac91e, whole runs of its sampler (numbers in tests/data/ddcm.json).
"""
import torch
from torch import Tensor
from tqdm.auto import trange

from .grid import first_step, of_rows, recorded, recorded_theta, report_step, source_where_equal
from .method import SEED, Found, Kept, Method, Setting


def virtual_path(x: Tensor, sigmas: Tensor, seed: int, eta=1.0) -> list:
    """S+1 latents in the order of sigmas [S+1], descending to 0, the clean x [B,C,…] last."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(x.shape, generator=generator).to(x)

    noise, path = draw(), [x]
    for sigma in sigmas[:-1]:
        path.insert(-1, x + sigma * noise)
        noise = (1 - eta) ** 0.5 * noise + eta ** 0.5 * draw()
    return path


def missed(model, path, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, together=1) -> list:
    """x_0 - D of each level of path but the clean one. together: how many levels share a model call."""
    found, S, B = [], len(sigmas) - 1, len(path[-1])
    for first in trange(0, S, together, disable=disable):
        steps = range(first, min(first + together, S))
        x, level = torch.cat([path[i] for i in steps]), sigmas[first:steps[-1] + 1].repeat_interleave(B)
        found += [path[-1] - D for D in model(x, level, **(extra_args or {})).split(B)]
        report_step(callback, steps[-1], path[steps[-1]], sigmas[first], path[-1] - found[-1])
    return found


def denoise(model, x: Tensor, source, missed, sigmas: Tensor, extra_args=None, callback=None, disable=None, *,
            eta=1.0) -> Tensor:
    """The latent at σ[-1], from x at σ[0]. source(i, x): the source's latent of level i, -1 for the clean one.
    missed(i, x): what the model misses of it."""
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        report_step(callback, i, x, sigmas[i], denoised)
        moved = denoised + missed(i, x) - source(-1, x)
        eps = (x - source(i, x) - moved) / sigmas[i]  # ε_tgt - ε_src
        x = source(i + 1, x) + moved + (1 - eta) ** 0.5 * sigmas[i + 1] * eps
    return x


def along(denoise, *settings):
    """Replay's `reverse` with a `denoise` that is called as the one above; θ_F "missed" holds x_0 - D_src."""
    def reverse(inversion):
        def solve(model, x, sigmas, extra_args=None, callback=None, disable=None):
            first = first_step(inversion, sigmas)
            return denoise(model, source_where_equal(inversion, first, x),
                           lambda i, x: of_rows(inversion.path[i if i < 0 else first + i], x),
                           lambda i, x: recorded(inversion, "missed", first + i, x), sigmas, extra_args, callback,
                           disable, **{name: inversion.settings[name] for name in settings})
        return solve
    return reverse


def inverted(model, x, sigmas, *args, seed, eta, **kwargs) -> Found:
    path = virtual_path(x, sigmas, seed, eta)
    return Found(path, {"missed": recorded_theta(missed(model, path, sigmas, *args, **kwargs))})


MISSED = {"missed": Kept("step", "step")}
METHOD = Method("DDCM", "DDCM Invert", inverted, steps=12, takes=("together",), no_flow=(
    "{node} noises the picture as eps and v models do, this {model} MODEL predicts by flow: use FlowEdit "
    "Invert or DDIM Invert, or an eps or v model (SD1.x, SD2.x, SDXL)."),
    settings={"eta": Setting(1.0, 0.0, 1.0, needed=True), "seed": SEED}, theta=MISSED,
    trajectory="independent", reverse=along(denoise, "eta"), residual="missed", every=True)
