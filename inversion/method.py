"""What each inversion method says of itself, and the table of all methods.

A method's file ends in its METHOD, or in METHODS where it holds two. The table is collected from the files of this
folder and of those inside it, so a new file alone adds a method.
"""
from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .trajectory import Inversion, Theta


@dataclass(frozen=True)
class Setting:
    """A number or a choice of a method. The node's widget shows the same.

    default: its type is the setting's.
    least, most: the range of a number.
    choices: those of a text; none where the text is free.
    needed: whether the way back needs it, so that the INVERSION keeps it.
    """
    default: int | float | str
    least: int | float = 0
    most: int | float = 0
    choices: tuple[str, ...] = ()
    needed: bool = False

    def allows(self, value) -> bool:
        return value in self.choices if self.choices else isinstance(value, str) or self.least <= value <= self.most


SEED = Setting(0, 0, 2 ** 64 - 1)


@dataclass(frozen=True)
class Kept:
    """A tensor that a method writes into θ_F.

    axis and applied_by: as Theta has them.
    dimensions: its number of them; None where each of its entries is a latent.
    optional: whether it may be missing: where the model reads no such input, or in older files.
    """
    axis: str
    applied_by: str
    dimensions: int | None = None
    optional: bool = False


class Found(NamedTuple):
    """What a method found.

    latents: one at each of the method's `levels`; none for a method that learns along another's trajectory.
    theta: its θ_F.
    notes: for people.
    """
    latents: list[Tensor] | None = None
    theta: Mapping[str, Theta] = {}
    notes: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Method:
    """How a method inverts, what it writes, and how sampling walks that back.

    name: in files and tables.
    node: its node's name, for messages.
    invert: invert(model, x, sigmas, extra_args, callback, disable, **taken, **settings) gives Found. model(x, sigma)
    gives x0, sigmas descend to 0, x is the picture's latent, all in sampler space.
    learn: learn(network, path, sigmas, flow=, cfg=, callback=, disable=, **settings) gives Found without latents; path
    has S+1 latents in the order of sigmas, network is pivotal_tuning.py's.
    along: of a method that learns, the method that its node inverts with first.
    asks: what `learn` asks the network for: "gradients", "guided" predictions, or nothing.
    unet: whether `learn` reads the blocks of the host's U-Nets.

    steps, scheduler: those of its node.
    cfg: its guidance by default; None where it runs without guidance.
    settings: name -> Setting, the keywords of `invert` or `learn`.
    takes: further keywords of `invert`: flow and data (`grid.scale`), together (levels that may share a forward).
    percents: further keywords of `invert` that are a σ, each a percent of the schedule.
    no_flow: why flow models are refused, a text of {node}, {model} and the settings.
    check: check(steps=, negative=, **settings) raises ValueError on settings that do not go together; negative says
    whether there is one.

    theta: name -> Kept. A name that ends in "." begins several.
    trajectory: "deterministic", or "independent" where Euler's steps do not join its levels.
    guided: whether what it recorded belongs to the CFG it was recorded at.
    reverse: reverse(inversion) gives the solver that takes its recorded steps, of k-diffusion's signature. None where
    Euler's steps, and so any host SAMPLER, walk the trajectory back.
    middles: whether its latents lie in the middle of each step too. Replay's SIGMAS leave these levels out.
    coupled: whether that solver holds two latents, or steps through middles. The network then sees, and a blend moves,
    what its CoupledState (grid.py) says. Of other methods the network sees the trajectory's latent of each level.
    hands_on: what a step of that solver hands on to the next beside the latent, in words. A run that another sampler
    began has lost it, and a warning says so.
    residual: the θ_F whose last entry the last step adds to x0 as it is.
    every: whether each step so adds its own.
    """
    name: str
    node: str
    invert: Callable[..., Found] | None = None
    learn: Callable[..., Found] | None = None
    along: str = ""
    asks: str = ""
    unet: bool = False

    steps: int = 50
    scheduler: str = "ddim_uniform"
    cfg: float | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    takes: tuple[str, ...] = ("flow", "data")
    percents: Mapping[str, float] = field(default_factory=dict)
    no_flow: str = ""
    check: Callable[..., None] | None = None

    theta: Mapping[str, Kept] = field(default_factory=dict)
    trajectory: str = "deterministic"
    guided: bool = False
    reverse: Callable[[Inversion], Callable] | None = None
    middles: bool = False
    coupled: bool = False
    hands_on: str = ""
    residual: str = ""
    every: bool = False

    @property
    def needed(self) -> list[str]:
        """What its way back reads of `Inversion.settings`."""
        own = [name for name, setting in self.settings.items() if setting.needed]
        return own + ["guidance", "negative"] * self.guided

    def levels(self, sigmas: Tensor) -> Tensor:
        """The σ of its latents, where it steps along these sigmas."""
        if not self.middles:
            return sigmas
        return torch.cat([torch.stack([sigmas[:-1], (sigmas[:-1] + sigmas[1:]) / 2], 1).flatten(), sigmas[-1:]])

    def sigmas(self, inversion: Inversion) -> Tensor:
        """The schedule that an INVERSION of it stepped along."""
        return inversion.sigmas[::2] if self.middles else inversion.sigmas

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All of its settings, the given ones and the defaults of the others; ValueError on what it does not know."""
        unknown = [name for name in given if name not in self.settings]
        if unknown:
            raise ValueError(f"{self.node} knows no {unknown[0]}: its settings are "
                             f"{', '.join(self.settings) or 'none'}.")
        for name, value in given.items():
            setting = self.settings[name]
            if not setting.allows(value):
                span = ", ".join(setting.choices) or f"{setting.least:g} to {setting.most:g}"
                raise ValueError(f"{self.node} has a {name} of {value}, which is outside {span}: choose one of these.")
        return {name: setting.default for name, setting in self.settings.items()} | dict(given)

    def lower(self, inversion: Inversion, sigma: float) -> float:
        """The level at which the step that leads to σ begins, 0 for the picture's. σ itself where none leads to it."""
        level = inversion.level(sigma)
        if level is None or self.trajectory != "deterministic" or self.middles and level % 2:
            return sigma
        return float(inversion.sigmas[level + 1 + self.middles])

    def landing(self, inversion: Inversion, sigma: float) -> Tensor:
        """The x0 [B,C,…] with which a step from σ keeps to the source: the clean latent, minus what the step adds."""
        level = inversion.level(sigma)
        if not self.residual or level is None or not (self.every or level == len(inversion.sigmas) - 2):
            return inversion.path[-1]
        return inversion.path[-1] - inversion.theta[self.residual].tensor[level]


UNCOND_POOLED = {"uncond_pooled": Kept("run", "prediction", 3, optional=True)}
NOISE_MAPS = {"z": Kept("step", "step")}
OFFSETS = {"offset": Kept("step", "step")}


@cache
def methods() -> dict[str, Method]:
    """Every method by its name, from the files of this folder."""
    package = import_module(__name__.rpartition(".")[0])
    modules = [import_module(m.name) for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    declared = [m for module in modules
                for m in getattr(module, "METHODS", [module.METHOD] if hasattr(module, "METHOD") else [])]
    return {method.name: method for method in sorted(declared, key=lambda m: m.name)}


def method_named(name: str) -> Method:
    """ValueError where there is none of that name."""
    if name not in methods():
        raise ValueError(f"No method is named {name!r}: choose one of {', '.join(methods())}.")
    return methods()[name]


def method_of(inversion: Inversion) -> Method:
    """ValueError where this version does not know the method."""
    if inversion.method not in methods():
        raise ValueError(f"The INVERSION was made by {inversion.method}, this version of Palimpsest knows "
                         f"{', '.join(methods())}: update Palimpsest, or invert again.")
    return methods()[inversion.method]


def check(inversion: Inversion):
    """ValueError unless an INVERSION holds what its method writes: settings and θ_F of these names and shapes."""
    method, steps = method_of(inversion), len(inversion.sigmas) - 1
    told = {**inversion.provenance, **inversion.settings}
    optional = [n for n in ("guidance", "evaluations", "seconds") if n in told]
    for name in (*(n for n, setting in method.settings.items() if setting.needed), *optional):
        if type(told.get(name)) not in (int, float):
            raise ValueError(f"{inversion.method} notes its {name} as a number, this is {told.get(name)!r}")
    kinds = {name: next((k for k in method.theta if name == k or k[-1] == "." and name.startswith(k)), "")
             for name in inversion.theta}
    required = {name for name, kept in method.theta.items() if not kept.optional}
    if "" in kinds.values() or not required <= set(kinds.values()):
        raise ValueError(f"{inversion.method} writes {', '.join(method.theta) or 'nothing'}, this holds "
                         f"{', '.join(inversion.theta) or 'nothing'}")
    for name, theta in inversion.theta.items():
        kept = method.theta[kinds[name]]
        shape, count = theta.tensor.shape, {"step": steps, "level": steps + 1, "run": 1}[kept.axis]
        latent = inversion.latents and inversion.latents[0].shape
        fits = len(shape) == kept.dimensions if kept.dimensions else shape[1:] == latent
        applied = (theta.axis, theta.applied_by) == (kept.axis, kept.applied_by)
        if not applied or not fits or shape[0] != count or not theta.tensor.numel():
            raise ValueError(f"{name} is {list(shape)}, by {theta.axis} for the {theta.applied_by}; {inversion.method} "
                             f"writes {count} of it, by {kept.axis} for the {kept.applied_by}")
