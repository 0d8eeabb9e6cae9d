"""The table of inversion methods: what each one learns or records (the survey's θ_F), and how Replay walks that
back."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import bdia, ddpm, direct, edict, ledits, renoise


@dataclass(frozen=True)
class Method:
    """reverse(inversion) gives the method's own solver, of k-diffusion's signature, for a θ_F applied by "step"; None
    where Euler's steps, and so any host SAMPLER, walk the trajectory back. guided: what it learned belongs to the CFG
    it was learned at. coupled: its solver holds two latents and takes `announce` (CoupledState, inversion/grid.py).
    theta: name -> (axis, applied by, dimensions, or None where each is a latent) of all that it writes into θ_F; a name
    that ends in "." begins several, one in "_pooled" is there only where the model reads it, one in "_scale" not in
    older files.
    settings: the numbers that reverse finds in the provenance."""
    reverse: Callable | None = None
    guided: bool = False
    coupled: bool = False
    theta: Mapping = field(default_factory=dict)
    settings: tuple = ()


UNCOND_POOLED = {"uncond_pooled": ("run", "prediction", 3)}
NOISE_MAPS = {"z": ("step", "step", None)}
OFFSETS = {"offset": ("step", "step", None)}
METHODS = {
    "DDIM": Method(),
    "Fixed Point": Method(),
    "Negative Prompt": Method(theta={"uncond": ("run", "prediction", 4), **UNCOND_POOLED}),
    "Null-Text": Method(guided=True, theta={"uncond": ("step", "prediction", 4), **UNCOND_POOLED}),
    "Prompt Tuning": Method(guided=True, theta={"cond": ("step", "prediction", 4), "cond_mix": ("run", "prediction", 1),
                                                "cond_pooled": ("run", "prediction", 3)}),
    "StyleDiffusion": Method(guided=True, theta={"value": ("step", "prediction", 4),
                                                 "value_end": ("run", "prediction", 1),
                                                 "value_scale": ("step", "prediction", 4)}),
    "KV": Method(guided=True, theta={"content.": ("step", "prediction", 5)}),
    "Regularized": Method(),
    "ReNoise": Method(),
    "ReNoise Ancestral": Method(renoise.reverse, theta={"noise": ("step", "step", None)}, settings=("eta",)),
    "EDICT": Method(edict.reverse, guided=True, coupled=True, theta={"y_minus_x": ("level", "step", None)},
                    settings=("p",)),
    "BDIA": Method(bdia.reverse, guided=True, coupled=True, theta=OFFSETS, settings=("gamma",)),
    "Direct": Method(direct.reverse, guided=True, theta=OFFSETS),
    "DDPM": Method(ddpm.reverse, theta=NOISE_MAPS, settings=("eta",)),
    "CycleDiffusion": Method(ddpm.reverse, theta=NOISE_MAPS, settings=("eta",)),
    "LEDITS++": Method(ledits.reverse, theta=NOISE_MAPS | {"denoised": ("step", "step", None)}),
}


def method_of(inversion) -> Method:
    """Its method; ValueError where this version knows none of that name."""
    if inversion.method not in METHODS:
        raise ValueError(f"The INVERSION was made by {inversion.method}, this version of Palimpsest knows "
                         f"{', '.join(METHODS)}: update Palimpsest, or invert again.")
    return METHODS[inversion.method]


def check(inversion):
    """ValueError where an INVERSION does not hold what its method writes: settings and θ_F, of these names and
    shapes."""
    method, steps = method_of(inversion), len(inversion.sigmas) - 1
    noted = [n for n in ("guidance", "evaluations", "seconds") if n in inversion.provenance]
    for name in (*method.settings, *noted):
        if type(inversion.provenance.get(name)) not in (int, float):
            raise ValueError(f"{inversion.method} notes its {name} as a number, this is "
                             f"{inversion.provenance.get(name)!r}")
    kinds = {name: next((k for k in method.theta if name == k or k[-1] == "." and name.startswith(k)), None)
             for name in inversion.theta}
    needed = {k for k in method.theta if not k.endswith(("_pooled", "_scale"))}
    if None in kinds.values() or not needed <= set(kinds.values()):
        raise ValueError(f"{inversion.method} writes {', '.join(method.theta) or 'nothing'}, this holds "
                         f"{', '.join(inversion.theta) or 'nothing'}")
    for name, theta in inversion.theta.items():
        axis, applied_by, dimensions = method.theta[kinds[name]]
        shape, count = theta.tensor.shape, {"step": steps, "level": steps + 1, "run": 1}[axis]
        latent = inversion.latents and inversion.latents[0].shape
        fits = len(shape) == dimensions if dimensions else shape[1:] == latent
        if (theta.axis, theta.applied_by) != (axis,
                                              applied_by) or not fits or shape[0] != count or not theta.tensor.numel():
            raise ValueError(f"{name} is {list(shape)}, by {theta.axis} for the {theta.applied_by}; {inversion.method} "
                             f"writes {count} of it, by {axis} for the {applied_by}")
