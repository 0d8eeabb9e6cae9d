"""Small networks whose steps contract, and the error of an inversion node and its replay on them."""
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import kept, relative

STEPS = 5


@kept
def family(name, output=0.05):
    """A small network, scaled down until its steps contract."""
    return {**tiny.UNETS, **tiny.FLOWS}[name](output=output)


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def invert(node, model, *settings, steps=STEPS, batch=1, source=None, **kwargs):
    given = model, source or tiny.cond(), picture(model, batch), steps, "ddim_uniform"
    return node.execute(*given, *settings, **kwargs).result[0]


def replay(model, inversion, cfg=1.0, negative=None, edited=None, prompt=None):
    m, solver, sigmas, latent = PalimpsestReplay.execute(edited or model, inversion, 0.0).result
    prompts = prompt or tiny.cond(), negative or tiny.cond(seed=9)
    found = SamplerCustom.execute(m, False, 5, cfg, *prompts, solver, sigmas, latent)
    return model.model.process_latent_in(found.result[0]["samples"])


def lost(model, inversion):
    return relative(replay(model, inversion), inversion.latents[-1])


def curved(x, sigma):
    """A non-linear denoiser that mixes the values of a latent."""
    return x - sigma.view(-1, 1) * torch.tanh(x @ MIX)


MIX = 0.6 * torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def start(rows=2):
    return torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def levels(steps, top=14.6):
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2 * top
