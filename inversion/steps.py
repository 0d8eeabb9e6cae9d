"""What the solvers with recorded steps share: the network's noise between levels, and where on the grid a run stands."""
import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in double precision where its device has it: an exact inverse must not let rounding grow from step to step."""
    return x if x.device.type == "mps" else x.double()


def noise_at(model, x: Tensor, c: Tensor, n: Tensor, dtype, extra_args, flow=False) -> tuple:
    """(x0, ε) that the network, asked in `dtype`, predicts at level σ = n for a latent x [B,C,…] of level σ = c.

    The network sees the plain DDIM latent z = x/√(1+c²), as `ddim.invert` shows it; flow models see x.
    """
    seen = (x if flow else x * ((1 + n ** 2) / (1 + c ** 2)).sqrt()).to(dtype)
    denoised = model(seen, n.to(dtype) * seen.new_ones(len(seen)), **(extra_args or {}))
    return denoised, (seen.to(x) - denoised.to(x)) / n


def first_step(inversion, sigmas: Tensor) -> int:
    """The index in the inversion's schedule where a run over sigmas starts; ValueError where it leaves that schedule."""
    first = inversion.step(float(sigmas[0]))
    own = inversion.sigmas[first:first + len(sigmas)]
    if len(own) != len(sigmas) or not torch.allclose(own, sigmas.to(own), rtol=1e-4, atol=0):
        raise ValueError(f"The sampler takes {len(sigmas) - 1} steps to sigma {float(sigmas[-1]):.4g}, the {inversion.method} "
                         f"INVERSION recorded {inversion.schedule}, each step for itself: sample with Replay's SIGMAS.")
    return first


def settled(inversion, level: int, x: Tensor) -> Tensor:
    """x, or the source's latents where x is them but for the rounding that the LATENT's scaling and back costs."""
    source = inversion.latents[level].to(x)
    source = source.repeat(len(x) // len(source), *[1] * (x.ndim - 1))
    return source if torch.allclose(x, source, rtol=1e-6, atol=1e-6 * float(source.abs().max())) else x


def recorded(inversion, name: str, index: int, x: Tensor) -> Tensor:
    """θ_F `name` at a step or level, for the rows of x: row i reads picture i mod B."""
    value = inversion.theta[name].tensor[index].to(x)
    return value.repeat(len(x) // len(value), *[1] * (x.ndim - 1))


def is_flow(inversion) -> bool:
    return inversion.fingerprint.prediction == "flow"


def tell(callback, i: int, x: Tensor, sigma: Tensor, denoised: Tensor):
    """k-diffusion's report of a step."""
    if callback is not None:
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
