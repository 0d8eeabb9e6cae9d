"""An Edit Friendly DDPM Noise Space: Inversion and Manipulations. Huberman-Spiegelglas, Kulikov, Michaeli, CVPR 2024.
arXiv:2304.06140

Instead of one chain, every level is noised independently, x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·ε̃_t, and the noise maps that make
DDPM's generative process pass through these levels are read off:
    z_t = (x_{t-1} - μ̂_t(x_t)) / σ_t.
They are less alike white noise than the sampler's own, correlate over time, and so hold the picture's structure.
Sampling with z_t fixed and another prompt edits it; `skip` is the level where that starts (Replay's start).

In x = z/√ᾱ the step of DDIM's family (Song et al. 2021, Eq. 12 and 16) is, with D the denoised picture,
    x' = D + σ_down·(x - D)/σ + σ_up·z,   σ_up = η·σ'·√(1 - σ'²/σ²),   σ_down² = σ'² - σ_up²;   η = 1 is DDPM.

The last step has σ_up = 0 and no map: it ends in D, and misses x_0 by a residual. Kept as z's last entry and added as
it is, the residual returns the picture; but what it holds of the source goes into every edit too, much where the last
level is noisy. The authors' code leaves it out (`last_residual`).

Differs from the authors' code: at η < 1 it takes √(1 - ᾱ' - η·σ_t²) where DDIM's formula has η².

Checked against: inbarhub/DDPM_inversion@58fc881 at η = 1, maps and edits (numbers in tests/data/exact.json).
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
from .method import NOISE_MAPS, SEED, Found, Method, Setting


def down_up(n: Tensor, c: Tensor, eta: float) -> tuple:
    """(σ_down, σ_up) of a step from level σ = n to the cleaner c."""
    up = eta * c * (1 - (c / n) ** 2).sqrt()  # Song et al. 2021, Eq. 16
    return (c ** 2 - up ** 2).sqrt(), up


def noise_maps(model, path, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, eta=1.0,
               together=1) -> tuple:
    """(path, S maps z [B,C,…]) of the steps along path, S+1 latents in the order of sigmas [S+1], which descend to 0.

    The path comes back with each latent as sampling will reach it, so that rounding does not add up. eta: in (0, 1].
    together: how many levels share a model call.
    """
    path, maps, S, B = list(path), [], len(sigmas) - 1, len(path[-1])
    for first in trange(0, S, together, disable=disable):
        steps = range(first, min(first + together, S))
        x, level = torch.cat([path[i] for i in steps]), sigmas[first:steps[-1] + 1].repeat_interleave(B)
        denoised = model(x, level, **(extra_args or {}))
        for i, D in zip(steps, denoised.split(B)):
            mean, scale = _step(path[i], D, sigmas[i], sigmas[i + 1], eta)
            maps.append((path[i + 1] - mean) / scale)  # z_t
            if i + 1 < S:
                path[i + 1] = mean + scale * maps[-1]
        report_step(callback, steps[-1], path[steps[-1]], sigmas[first], D)
    return path, maps


def denoise(model, x: Tensor, z, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, eta=1.0) -> Tensor:
    """The latent at σ[-1], from x at σ[0]; z(i, x) is the map of step i."""
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        report_step(callback, i, x, sigmas[i], denoised)
        mean, scale = _step(x, denoised, sigmas[i], sigmas[i + 1], eta)
        x = mean + scale * z(i, x)
    return x


def _step(x, denoised, n, c, eta):
    """μ̂ of the step from n to c, and what multiplies its map: σ_up, or 1 for the residual of the last step."""
    down, up = down_up(n, c, eta)
    return denoised + down * (x - denoised) / n, up if c > 0 else 1  # Song et al. 2021, Eq. 12


def reverse(inversion):
    """Replay's solver; θ_F "z" holds the noise maps, one a step."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None):
        first = first_step(inversion, sigmas)
        x = source_where_equal(inversion, first, x)
        return denoise(model, x, lambda i, x: recorded(inversion, "z", first + i, x), sigmas, extra_args, callback,
                       disable, eta=inversion.settings["eta"])
    return solve


def inverted(model, x, sigmas, *args, seed, last_residual: str, **kwargs) -> Found:
    path, maps = noise_maps(model, independent_path(x, sigmas, seed), sigmas, *args, **kwargs)
    return Found(path, {"z": recorded_theta(with_last_residual(maps, sigmas, last_residual))})


METHOD = Method("DDPM", "DDPM Invert", inverted, steps=100, cfg=1.0, takes=("together",), no_flow=NO_DDPM, settings={
    "eta": Setting(1.0, 0.01, 1.0, needed=True), "seed": SEED, "last_residual": LAST_RESIDUAL},
    theta=NOISE_MAPS, trajectory="independent", reverse=reverse, residual="z")
