"""The table of inversion methods: how Replay walks back what each one recorded for its steps (the survey's θ_F)."""
from collections.abc import Callable
from dataclasses import dataclass

from . import bdia, ddpm, direct, edict, renoise


@dataclass(frozen=True)
class Method:
    """reverse(inversion) gives the method's own solver, of k-diffusion's signature, for a θ_F applied by "step"; None where Euler's
    steps, and so any host SAMPLER, walk the trajectory back."""
    reverse: "Callable | None" = None


METHODS = {
    "DDIM": Method(),
    "Fixed Point": Method(),
    "Negative Prompt": Method(),
    "ReNoise": Method(),
    "ReNoise Ancestral": Method(renoise.reverse),
    "EDICT": Method(edict.reverse),
    "BDIA": Method(bdia.reverse),
    "Direct": Method(direct.reverse),
    "DDPM": Method(ddpm.reverse),
    "CycleDiffusion": Method(ddpm.reverse),
}
