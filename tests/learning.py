"""Inversions that learn, a linear network that can reach the pivot, and what a replay's attention reads."""
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.host.unet import resolutions
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.kv import PalimpsestKVInvert
from palimpsest.nodes.inversion.prompt_tuning import PalimpsestPromptTuningInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.inversion.style_diffusion import PalimpsestStyleDiffusionInvert

import tiny
from runs import relative

CFG, STEPS = 7.5, 4
EVERY = {**tiny.UNETS, **tiny.FLOWS}
NULL, OTHER = tiny.cond(seed=9), tiny.cond(seed=4)


def tuned_prompt(model, inversion, iterations=6, tolerance=0.0, negative=NULL, mix=0.0, target=None):
    with torch.inference_mode():
        return PalimpsestPromptTuningInvert.execute(model, inversion, negative, CFG, iterations, tolerance, mix,
                                                    target).result[0]


def style(model, inversion, iterations=6, tolerance=0.0, negative=NULL, regularise=1.0, end=0.5):
    with torch.inference_mode():
        return PalimpsestStyleDiffusionInvert.execute(model, inversion, negative, CFG, iterations, tolerance,
                                                      regularise,
                                                      end).result[0]


def contents(model, inversion, iterations=6, tolerance=0.0, negative=NULL, layers=""):
    with torch.inference_mode():
        return PalimpsestKVInvert.execute(model, inversion, negative, CFG, iterations, tolerance, layers).result[0]


LEARN = {"prompt": tuned_prompt, "style": style, "contents": contents}


def inverted(model, steps=STEPS, batch=1):
    with torch.inference_mode():
        picture = {"samples": model.model.process_latent_out(tiny.latent(model, batch))}
        return PalimpsestDDIMInvert.execute(model, tiny.cond(), picture, steps, "ddim_uniform").result[0]


def replay(model, inversion, prompt=None, cfg=CFG, after=lambda model: model):
    with torch.inference_mode():
        m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
        found = SamplerCustom.execute(after(m), False, 5, cfg, prompt or tiny.cond(), NULL, solver, sigmas, latent)
        return model.model.process_latent_in(found.result[0]["samples"])


SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0])


def linear():
    """x0 = mean over the tokens · A + x/2. It is linear in an embedding or in an offset from it, and
    does not follow the pivot."""
    generator = torch.Generator().manual_seed(1)
    a, start = torch.randn(6, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    path = [torch.randn(2, 6, generator=generator) * (1 + float(s)) for s in SIGMAS]

    def model(x, sigma, c=start[:1] / 2):
        return c.expand(len(x), -1, -1).mean(1) @ a + x / 2

    return model, start, path


def lands(model, path, conds):
    """The paper's guided Euler steps from the pivot's start reach the pivot at every level."""
    x = path[0]
    for i, cond in enumerate(conds):
        denoised = (1 - CFG) * model(x, None) + CFG * cond(x)
        x = x + (SIGMAS[i + 1] - SIGMAS[i]) / SIGMAS[i] * (x - denoised)
        assert relative(x, path[i + 1]) < 1e-4


SETTINGS = {"cfg": CFG, "iterations": 60, "tolerance": 1e-11, "disable": True}


def read_by(model, inversion, prompt, kind):
    """The inputs of attention's projections in every forward of a replay: [{(section, block, depth): {"q", "k", "v"}}].
    The target's rows come first."""
    network, forwards, hooks = model.model.diffusion_model, [], []
    sections = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    for place in resolutions(network):
        block = next(m for m in sections[place[0]][place[1]]
                     if hasattr(m, "transformer_blocks")).transformer_blocks[place[2]]
        for name in "qkv":
            layer = getattr(getattr(block, kind), f"to_{name}")

            def keep(m, args, place=place, name=name):
                forwards[-1].setdefault(place, {})[name] = args[0].clone()

            hooks.append(layer.register_forward_pre_hook(keep))
    hooks.append(network.register_forward_pre_hook(lambda m, args: forwards.append({})))
    replay(model, inversion, prompt)
    for hook in hooks:
        hook.remove()
    assert len(forwards) == STEPS
    return forwards
