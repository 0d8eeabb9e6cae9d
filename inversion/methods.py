"""The table of inversion methods: how Replay walks back what each one recorded for its steps (the survey's θ_F)."""
from collections.abc import Callable
from dataclasses import dataclass

from . import bdia, ddpm, direct, edict, ledits, renoise


@dataclass(frozen=True)
class Method:
    """reverse(inversion) gives the method's own solver, of k-diffusion's signature, for a θ_F applied by "step"; None where
    Euler's steps, and so any host SAMPLER, walk the trajectory back. guided: what it learned belongs to the CFG it was learned
    at. stands: its solver holds two latents and takes stand(Standing), by which it says where it stands (inversion/steps.py)."""
    reverse: Callable | None = None
    guided: bool = False
    stands: bool = False


METHODS = {
    "DDIM": Method(),
    "Fixed Point": Method(),
    "Negative Prompt": Method(),
    "Null-Text": Method(guided=True),
    "Prompt Tuning": Method(guided=True),
    "StyleDiffusion": Method(guided=True),
    "KV": Method(guided=True),
    "Regularized": Method(),
    "ReNoise": Method(),
    "ReNoise Ancestral": Method(renoise.reverse),
    "EDICT": Method(edict.reverse, guided=True, stands=True),
    "BDIA": Method(bdia.reverse, guided=True, stands=True),
    "Direct": Method(direct.reverse, guided=True),
    "DDPM": Method(ddpm.reverse),
    "CycleDiffusion": Method(ddpm.reverse),
    "LEDITS++": Method(ledits.reverse),
}
