"""Exact inversions by name, as their nodes make them, and their replay."""
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.nodes.inversion.bdia import PalimpsestBDIAInvert
from palimpsest.nodes.inversion.cycle_diffusion import PalimpsestCycleDiffusionInvert
from palimpsest.nodes.inversion.ddcm import PalimpsestDDCMInvert
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.direct import PalimpsestDirectInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny

STEPS = 10
NEGATIVE = 9  # seed of the negative prompt


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def arguments(name, cfg=1.0, **changed):
    """The node of a method, with its own inputs at their defaults."""
    node = NODES[name]
    own = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    own |= {"steps": STEPS, **({"cfg": cfg, "negative": tiny.cond(seed=NEGATIVE)} if "cfg" in own else {})}
    return node, own | changed


NODES = {"EDICT": PalimpsestEDICTInvert, "BDIA": PalimpsestBDIAInvert, "Direct": PalimpsestDirectInvert,
         "DDPM": PalimpsestDDPMInvert, "CycleDiffusion": PalimpsestCycleDiffusionInvert,
         "DDCM": PalimpsestDDCMInvert, "DDIM": PalimpsestDDIMInvert}


def invert(name, model, latent=None, cfg=1.0, source=None, **changed):
    node, own = arguments(name, cfg, **changed)
    return node.execute(model, source or tiny.cond(), latent or picture(model), **own).result[0]


def replay(model, inversion, cfg=1.0, start=0.0, prompt=None, negative=None, repeat=1):
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, start).result
    latent = {"samples": latent["samples"].repeat(repeat, *[1] * (latent["samples"].ndim - 1))}
    negative = negative or tiny.cond(seed=NEGATIVE)
    return SamplerCustom.execute(m, False, 0, cfg, prompt or tiny.cond(), negative, solver, sigmas,
                                 latent).result[0]["samples"]
