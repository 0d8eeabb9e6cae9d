"""What the solvers share: the network's noise between levels, recorded steps, and where a run begins."""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .method import Setting
from .trajectory import Theta

CLEAN = 0.1  # the σ of a last level that hides nothing of the picture
LAST_RESIDUAL = Setting("auto", choices=("auto", "keep", "zero"))
NO_DDPM = ("{node} reads the noise maps of a DDPM chain, this {model} MODEL predicts by flow and has none: use "
           "FlowEdit Invert or DDIM Invert, or an eps or v model (SD1.x, SD2.x, SDXL).")


def in_double(x: Tensor) -> Tensor:
    """x in double precision where its device has it: an exact inverse must not let rounding grow from step to step."""
    return x if x.device.type == "mps" else x.double()


EXPANSION = 24 * math.log10(2)  # the digits that a float32 latent resolves


def scale(c: Tensor, n: Tensor, flow=False, data=1.0):
    """What multiplies a latent of level σ = c for the network at level n, which sees the plain latent of its training,
    z = x/√(data² + c²) (DDIM's at 1, EDM's at σ_data), as `ddim.invert` shows it; flow models see x."""
    return 1 if flow else ((data ** 2 + n ** 2) / (data ** 2 + c ** 2)).sqrt()


def noise_at(model, x: Tensor, c: Tensor, n: Tensor, dtype, extra_args, **seen_as) -> tuple:
    """(x0, ε) that the network, asked in `dtype`, predicts at level σ = n for a latent x [B,C,…] of level σ = c.
    seen_as: flow and data of `scale`."""
    seen = (x * scale(c, n, **seen_as)).to(dtype)
    denoised = model(seen, n.to(dtype) * seen.new_ones(len(seen)), **(extra_args or {}))
    return denoised, (seen.to(x) - denoised.to(x)) / n


@dataclass(eq=False)
class CoupledState:
    """The state of a solver of two latents as it asks the network: its step gives pair[1 - sees] + slope·ε(pair[sees]).

    pair: the two, [B,C,…] each. An editor may change them until the network has answered.
    sees: which of them the network sees.
    level: the σ that this latent belongs to.
    sigma: the σ at which the network sees it.
    slope: what multiplies ε.
    source: source(inversion) gives what the network saw of an INVERSION here and what the step then gave,
    [pictures,C,…] each.
    seen_as: flow and data of `scale`.
    on_path: whether what is seen is always the trajectory's latent of level `sigma`.
    tied: whether the other latent is made from the one that is seen, and so moves with it.
    """
    pair: list
    sees: int
    level: Tensor
    sigma: Tensor
    slope: Tensor
    source: Callable
    seen_as: dict
    on_path: bool = True
    tied: bool = False

    def ask(self, model, dtype, extra_args, announce) -> tuple:
        """(x0, ε) of `noise_at`. announce(self), if given, tells the editors of a run first."""
        if announce is not None:
            announce(self)
        denoised, _ = noise_at(model, self.pair[self.sees], self.level, self.sigma, dtype, extra_args, **self.seen_as)
        seen = self.shown(self.pair[self.sees]).to(dtype).to(self.pair[0])  # an editor may have moved it
        return denoised, (seen - denoised.to(seen)) / self.sigma

    def shown(self, latent) -> Tensor:
        """A latent of the level that is seen, as the network sees it."""
        return latent * scale(self.level, self.sigma, **self.seen_as)

    def move(self, by: Tensor):
        """Moves what the network sees by so much."""
        for i in (0, 1) if self.tied else (self.sees,):
            self.pair[i] = self.pair[i] + by.to(self.pair[i]) / scale(self.level, self.sigma, **self.seen_as)

    def landing(self, inversion) -> Tensor:
        """The x0 [B,C,…] with which the step gives what it gave in the INVERSION, wherever it starts."""
        base = self.pair[1 - self.sees]
        eps = (of_rows(self.source(inversion)[1], base) - base) / self.slope
        return self.shown(self.pair[self.sees]) - self.sigma * eps


def first_step(inversion, sigmas: Tensor) -> int:
    """The index in the inversion's schedule where a run over sigmas starts. ValueError if the
    run leaves that schedule."""
    first = inversion.step(float(sigmas[0]))
    own = inversion.sigmas[first:first + len(sigmas)]
    if len(own) != len(sigmas) or not torch.allclose(own, sigmas.to(own), rtol=1e-4, atol=0):
        raise ValueError(f"The sampler takes {len(sigmas) - 1} steps to sigma {float(sigmas[-1]):.4g}, the "
                         f"{inversion.method} INVERSION recorded {inversion.schedule}, each step for itself: sample "
                         "with Replay's SIGMAS.")
    return first


def source_where_equal(inversion, level: int, x: Tensor) -> Tensor:
    """x, or the source's latents where x is them but for the rounding that the LATENT's scaling and back costs."""
    source = of_rows(inversion.path[level], x)
    return source if torch.allclose(x, source, rtol=1e-6, atol=1e-6 * float(source.abs().max())) else x


def recorded_theta(tensors: list, axis="step") -> Theta:
    """θ_F of what is recorded for the solver, one tensor a step or level."""
    return Theta(torch.stack([t.float().cpu() for t in tensors]), axis, "step")


def recorded(inversion, name: str, index: int, x: Tensor) -> Tensor:
    """θ_F `name` at a step or level, for the rows of x: row i reads picture i mod B."""
    return of_rows(inversion.theta[name].tensor[index], x)


def append_dims(values: Tensor, x: Tensor) -> Tensor:
    """Values of the first dimensions of x, in a shape that broadcasts with it."""
    return values.view(*values.shape, *[1] * (x.ndim - values.ndim))


def of_rows(value: Tensor, x: Tensor) -> Tensor:
    """What is known of B pictures, for the rows of x."""
    return value.to(x).repeat(len(x) // len(value), *[1] * (x.ndim - 1))


def seen_as(fingerprint) -> dict:
    """What `scale` takes of a model: flow and data."""
    return {"flow": fingerprint.prediction == "flow", "data": fingerprint.sigma_data}


def independent_path(x: Tensor, sigmas: Tensor, seed: int) -> list:
    """S+1 latents in the order of sigmas, the clean x [B,C,…] last. Each level is noised
    independently, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return [*(x + s * torch.randn(x.shape, generator=generator).to(x) for s in sigmas[:-1]), x]


def with_last_residual(maps: list, sigmas: Tensor, choice: str) -> list:
    """Noise maps, the last of them the residual ("keep") or 0 as in the authors' code ("zero"); "auto" is theirs where
    the last level is over σ = 0.1."""
    kept = choice == "keep" or choice == "auto" and sigmas[-2] <= CLEAN
    return maps if kept else [*maps[:-1], torch.zeros_like(maps[-1])]


def report_step(callback, i: int, x: Tensor, sigma: Tensor, denoised: Tensor):
    """k-diffusion's report of a step."""
    if callback is not None:
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
