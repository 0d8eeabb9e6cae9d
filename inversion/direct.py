"""Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code (PnP Inversion). Ju, Zeng, Bian, Liu, Xu,
ICLR 2024. arXiv:2310.01506

DDIM inversion at guidance 1 gives z*_t; sampling it with guidance w drifts away. Instead of learning something that
brings it back, the source branch is corrected at every step by what it misses,
    o_{t-1} = z*_{t-1} - DDIM(z_t, t, C_src, w),   z_{t-1} = DDIM(z_t, t, C_src, w) + o_{t-1},
and the target branch is left alone. The offset is the distance to the source, times a scale that the paper studies (its
1 corrects the whole distance). It depends on w, so it holds for replay at the guidance it was recorded with.

Differs from the paper: for editors the source branch is read from z* itself and needs no offsets; they serve the
source's replay.

Checked against: the paper's equations.
"""
from torch import Tensor
from tqdm.auto import trange

from .grid import first_step, noise_at, recorded, recorded_theta, report_step, source_where_equal
from .method import OFFSETS, Found, Method, Setting


def record(model, path, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, scale=1.0) -> list:
    """The S offsets with which sampling from path[0] follows the path: S+1 latents in the order of
    sigmas [S+1], descending."""
    x, offsets = path[0], []
    for i in trange(len(sigmas) - 1, disable=disable):
        y = _step(model, x, i, sigmas, extra_args, callback)
        offsets.append(scale * (path[i + 1] - y))  # o_{t-1}
        x = y + offsets[-1]
    return offsets


def denoise(model, x: Tensor, offset, sigmas: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
    """The latent at σ[-1], from x at σ[0]; offset(i, x) is that of step i."""
    for i in trange(len(sigmas) - 1, disable=disable):
        x = _step(model, x, i, sigmas, extra_args, callback) + offset(i, x)
    return x


def _step(model, x, i, sigmas, extra_args, callback):
    denoised, eps = noise_at(model, x, sigmas[i], sigmas[i], x.dtype, extra_args)
    report_step(callback, i, x, sigmas[i], denoised)
    return x + (sigmas[i + 1] - sigmas[i]) * eps


def reverse(inversion):
    """Replay's solver; θ_F "offset" holds o, one a step."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None):
        first = first_step(inversion, sigmas)
        x = source_where_equal(inversion, first, x)
        return denoise(model, x, lambda i, x: recorded(inversion, "offset", first + i, x), sigmas, extra_args,
                       callback, disable)
    return solve


def learn(network, path, sigmas, *, flow, cfg, **kwargs) -> Found:
    """The offsets of sampling at this CFG."""
    return Found(theta={"offset": recorded_theta(record(network.guided, path, sigmas, **kwargs))})


METHOD = Method("Direct", "Direct Invert", learn=learn, along="DDIM", asks="guided", cfg=1.0,
                settings={"scale": Setting(1.0, 0.0, 1.0)}, theta=OFFSETS, guided=True, reverse=reverse,
                residual="offset")
