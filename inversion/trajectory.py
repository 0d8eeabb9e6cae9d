"""The INVERSION: what an inversion hands to the editors, the clue Φ of the survey's F_inv.

Latents are in sampler space, as the host's samplers see them: x = x0 + σ·ε on eps and v models, x = (1-σ)·x0 + σ·ε on
flow models. A deterministic trajectory is followed by Euler steps, so between its levels it is a straight line in σ.
"""
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

# relative: two σ this near are the same level. On flow models the host's SDE samplers begin 1e-4 under σ = 1, rounded
TOLERANCE = 1.5e-4
log = logging.getLogger("palimpsest")


@dataclass(frozen=True, eq=False)
class Theta:
    """What a method learned or recorded (θ_F), with the axis its first dimension runs along."""
    tensor: Tensor
    axis: str        # "step", "level" or "run"
    applied_by: str  # "prediction" (Replay's MODEL) or "step" (Replay's SAMPLER)


class Fingerprint(Protocol):
    """What is known of the model that an inversion was made with."""
    @property
    def latent_format(self) -> str: ...

    @property
    def prediction(self) -> str: ...

    @property
    def sigma_data(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture read into noise. Immutable; every tensor is CPU float32.

    sigmas: [S+1], descending, the last 0. Some methods have the middles of their steps among them (method.py).
    latents: S+1 tensors [B,C,…], one at each σ, the clean one last; none for methods that learn without a trajectory.
    conditioning: the source in the host's form, exactly one entry [cross_attn, {…}].
    fingerprint: the host's, of the model it was made with, comparable with ==.
    method: its name in the table of methods (method.py).
    trajectory: "deterministic", or "independent" where Euler's steps do not join the levels.
    theta: θ_F by name, what the method learned or recorded.
    settings: the numbers that the way back needs, such as EDICT's p and the CFG of what was recorded.
    provenance: notes for people; nothing reads them to decide.
    """
    sigmas: Tensor
    latents: tuple[Tensor, ...] | None
    conditioning: list
    fingerprint: Fingerprint
    method: str = "DDIM"
    trajectory: str = "deterministic"
    theta: Mapping[str, Theta] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _warned: set = field(default_factory=set, init=False, repr=False)

    def __post_init__(self):
        check_schedule(self.sigmas)
        if len(self.conditioning) != 1:
            raise ValueError(f"The source CONDITIONING has {len(self.conditioning)} entries, an INVERSION holds one.")
        if self.latents is not None:
            object.__setattr__(self, "latents", tuple(self.latents))
            self._check(self.path)
        for name in ("theta", "settings", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def _check(self, latents):
        if len(latents) != len(self.sigmas):
            raise ValueError(f"{len(latents)} latents for {len(self.sigmas)} sigmas: there must be one at each.")
        shape = latents[0].shape
        for sigma, latent in zip(self.sigmas.tolist(), latents):
            name = f"The latent at sigma {sigma:.4g}"
            if latent.shape != shape:
                raise ValueError(f"{name} is {list(latent.shape)}, the first is {list(shape)}.")
            if latent.dtype != torch.float32 or latent.device.type != "cpu":
                raise ValueError(f"{name} is {latent.dtype} on {latent.device}: give float32 on cpu.")
            bad = int((~latent.isfinite()).sum())
            if bad:
                raise ValueError(f"{name} has {bad} of {latent.numel()} values NaN or infinite: the model left its "
                                 "range on this picture; try fp32 weights, or more steps.")

    def __deepcopy__(self, memo):
        return self

    @property
    def batch(self) -> int:
        """The number of rows B."""
        return len(self.conditioning[0][0] if self.latents is None else self.latents[-1])

    @property
    def pictures(self) -> int:
        """How many there are; a method may have n_avg rows of each, the first of all of them first."""
        return self.batch // self.settings.get("n_avg", 1)

    @property
    def path(self) -> tuple[Tensor, ...]:
        """The latents; ValueError where no trajectory was kept."""
        if self.latents is None:
            raise ValueError(f"The {self.method} INVERSION keeps no trajectory: connect one from DDIM Invert.")
        return self.latents

    @property
    def shape(self) -> torch.Size | None:
        """[C,…] of one picture's latent."""
        return None if self.latents is None else self.latents[-1].shape[1:]

    @property
    def tokens(self):
        """The source text's tokens, one a row, where Prompt Edit encoded it; else None."""
        return self.conditioning[0][1].get("palimpsest_tokens")

    @property
    def schedule(self) -> str:
        """The schedule in words, for messages."""
        return describe(self.sigmas, self.provenance.get("scheduler", ""), self.provenance.get("steps"))

    def covers(self, sigma: float) -> bool:
        """Whether `at(sigma)` has an answer."""
        return self.latents is not None and (
            self.level(sigma) is not None or self.trajectory == "deterministic" and 0 < sigma < float(self.sigmas[0]))

    def at(self, sigma: float) -> Tensor:
        """The source's latents [B,C,…] at σ: stored on the grid (within TOLERANCE), linear in σ between levels.

        Raises ValueError outside the grid, between independently noised levels, and where no trajectory was kept.
        """
        path, level = self.path, self.level(sigma)
        if level is not None:
            return path[level]
        if not self.covers(sigma):
            inside = 0 < sigma < float(self.sigmas[0])
            why = "its levels are noised independently, none lies between" if inside else "it does not reach there"
            raise ValueError(f"The sampler asks for sigma {sigma:.4g}, the {self.method} INVERSION has "
                             f"{self.schedule}: {why}. Sample with Replay's SIGMAS and euler.")
        self.warn_once("The sampler asks for levels between the inversion's (%s): its latents are interpolated. Sample "
                       "with Replay's SIGMAS, without intermediate levels, to read them exactly.", self.schedule)
        grid = self.sigmas.tolist()
        clean = next(i for i, s in enumerate(grid) if s < sigma)
        weight = (sigma - grid[clean]) / (grid[clean - 1] - grid[clean])
        return torch.lerp(path[clean], path[clean - 1], weight)

    def step(self, sigma: float) -> int:
        """The index of the step that starts at σ. ValueError off the inversion's own levels,
        where nothing was learned."""
        level = self.level(sigma)
        if level is None:
            raise ValueError(f"The sampler asks for sigma {sigma:.4g}, where the {self.method} INVERSION learned "
                             f"nothing; its schedule is {self.schedule}. Sample with Replay's SIGMAS and without "
                             "intermediate levels (euler).")
        return level

    def require(self, sigmas: Tensor):
        """Raise ValueError, naming both schedules, where a sampler's SIGMAS meet a level that `at` cannot give."""
        missed = [s for s in sigmas[:-1].tolist() if not self.covers(s)]
        if missed:
            raise ValueError(f"The sampler's schedule ({describe(sigmas)}) asks for sigma {missed[0]:.4g}, which the "
                             f"{self.method} INVERSION ({self.schedule}) cannot give: sample with Replay's SIGMAS.")

    def begin_run(self):
        """A warning may come again."""
        self._warned.clear()

    def warn_once(self, message: str, *args):
        """Log a warning the first time that this INVERSION gives rise to it in a run."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, *args)

    def level(self, sigma: float) -> int | None:
        """The index of the level at σ; none between levels."""
        distance = (self.sigmas.double() - sigma).abs()
        level = int(distance.argmin())
        return level if distance[level] <= TOLERANCE * self.sigmas[level] else None


def describe(sigmas: Tensor, scheduler="", steps=None) -> str:
    """A schedule in words, such as "50 ddim_uniform steps from sigma 13.1 to 0"."""
    steps = f"{steps if isinstance(steps, int) else len(sigmas) - 1} {scheduler}".strip()
    return f"{steps} steps from sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}"


def check_schedule(sigmas: Tensor):
    """SIGMAS of a whole trajectory: [S+1] float32, S ≥ 1, descending, the last 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"SIGMAS of shape {list(sigmas.shape)} hold no step, an inversion needs two levels "
                         "or more: connect a scheduler node (not split), or leave the input empty.")
    if sigmas.dtype != torch.float32 or sigmas.device.type != "cpu":
        raise ValueError(f"SIGMAS are {sigmas.dtype} on {sigmas.device}: give float32 on cpu.")
    values = sigmas.tolist()
    rising = next((f"{a:.4g} is followed by {b:.4g}" for a, b in pairwise(values) if not a > b), None)
    if rising or values[-1] != 0:
        raise ValueError(f"SIGMAS must descend to 0: {rising or f'the last is {values[-1]:.4g}'}. Connect a scheduler "
                         "node (neither flipped nor split), or take fewer steps where levels repeat.")
