"""DDIM Invert and Replay Inversion on small models of every family."""
import pytest
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny

STEPS = 12
FAMILIES = {**tiny.UNETS, **tiny.FLOWS}


@pytest.fixture
def model():
    return tiny.sd15()


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def invert(model, latent=None, steps=STEPS, source=None, scheduler="ddim_uniform", sigmas=None):
    return PalimpsestDDIMInvert.execute(model, source or tiny.cond(), latent or picture(model), steps, scheduler,
                                        sigmas).result


def replay(model, inversion, start=0.0, sampler=None, add_noise=False, prompt=None, cfg=1.0, seed=5):
    """SamplerCustom on the four outputs of Replay."""
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, start, sampler).result
    prompt, negative = prompt or tiny.cond(), tiny.cond(seed=9)
    found = SamplerCustom.execute(m, add_noise, seed, cfg, prompt, negative, solver, sigmas, latent)
    return found.result[0]["samples"]
