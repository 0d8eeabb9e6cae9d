"""Noise Map Guidance against a plain implementation of the paper's equations on diffusers' network, and on the host."""
import comfy.model_management as management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicGuider
from palimpsest.bench import twin
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.guidance.nmg import PalimpsestNoiseMapGuidance
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import Case, invert, kept, relative
from watching import LONG

STEPS, CFG = 5, 4.0


@kept
def case(**kwargs):
    return Case(steps=STEPS, **kwargs)


def guided(model, inversion, product=3.0, rows="all"):
    """product: s_N·s_g over the number of a latent's values."""
    return PalimpsestNoiseMapGuidance.execute(model, inversion, product * inversion.latents[0][0].numel() / 16384,
                                              rows).result[0]


def paper(unet, path, sigmas, timesteps, null, text, s_N, s_g, s_T):
    """z_0 of the paper's Eq. 5 to 9 from z*_T, with the authors' mean as the energy. If s_N is 0 there is no step on
    the noise map.

    path: z* at the levels of sigmas.
    """
    alpha, z = 1 / (1 + sigmas ** 2), path[0]

    def eps(z, i, context):
        return unet(z, timesteps[i], encoder_hidden_states=context).sample

    def ddim(z, e, i):
        drop = (1 / alpha[i + 1] - 1).sqrt() - (1 / alpha[i] - 1).sqrt()
        return (alpha[i + 1] / alpha[i]).sqrt() * z + alpha[i + 1].sqrt() * drop * e

    for i in range(len(timesteps)):
        if s_N:
            seen = z.clone().requires_grad_()
            free = eps(seen, i, null)
            slope, = torch.autograd.grad((ddim(seen, free, i) - path[i + 1]).abs().mean(), seen)
            free = free.detach()
            noise_map = free + s_g * (1 - alpha[i]).sqrt() * slope
            z = ddim(z, free + s_N * (noise_map - free), i)
        with torch.no_grad():
            free = eps(z, i, null)
            z = ddim(z, free + s_T * (eps(z, i, text) - free), i)
    return z


@pytest.mark.parametrize("size", [8, 16])
def test_a_run_is_the_papers(size):
    """Two ways: source and target prompt both guided, and as the authors guide, with only the source's row. The scale
    belongs to a mean, so it acts a quarter as strongly on four times as many values."""
    c, model, scale = case(size=size, targets=("a red cat on a mat",
                                               "a blue cat on a mat")), tiny.sd15(output=0.6), 0.04
    inversion = invert(model, c.source, c.latent, STEPS)[0]
    _, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    path = [twin.z_of(x.clone(), s) for x, s in zip(inversion.latents, sigmas)]
    timesteps, unet = model.get_model_object("model_sampling").timestep(sigmas[:-1]).clone(), twin.unet(model)
    texts = [text[None].clone() for text in c.target[0][0]]
    led, plain = ([paper(unet, path, sigmas.clone(), timesteps, c.null[0][0].clone(), text, s_N, scale * 16384 / 10,
                         CFG)
                   for text in texts] for s_N in (10.0, 0.0))
    for rows, theirs in (("all", led), ("source", [led[0], plain[1]])):
        edited = PalimpsestNoiseMapGuidance.execute(model, inversion, scale, rows).result[0]
        found = c.sample(edited, c.target, CFG, solver, latent["samples"].repeat(2, 1, 1, 1), sigmas)
        for ours, row in zip(model.model.process_latent_in(found), theirs):
            assert relative(ours, row[0]) < 1e-4, relative(ours, row[0])
    assert min(map(relative, led, plain)) > 0.05


def test_the_sources_row_is_found_beside_a_longer_prompt():
    c = case(targets=("a red cat on a mat", f"a blue cat on a mat, {LONG}"))
    found, plain = (c.sample(m, latent=c.noise.repeat(2, 1, 1, 1))
                    for m in (guided(c.model, c.inversion, rows="source"), c.model))
    assert relative(found[0], plain[0]) > 1e-3 and relative(found[1], plain[1]) < 1e-5


def test_guidance_alone_leaves_the_picture_and_noise_maps_lead_back():
    """A scene of the miniature with its own prompt at CFG 4."""
    with torch.inference_mode():
        model, clip, vae = load_miniature()
        edit = held_out_edit(0, "colour")
        source, null = (tiny.encode(clip, text) for text in (edit.source_text, ""))
        picture = vae.encode(torch.from_numpy(edit.source_image)[None])
        inversion = invert(model, source, picture, 20)[0]
        _, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
        plain, led = (relative(case().sample(m, source, CFG, solver, latent["samples"], sigmas, negative=null), picture)
                      for m in (model, guided(model, inversion, rows="source")))
    assert led < 0.7 * plain, (led, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_guided_too(dtype):
    half, full = case(dtype=dtype), case()
    found, wanted = (c.sample(guided(c.model, c.inversion)) for c in (half, full))
    assert found.isfinite().all() and relative(found, wanted) < 0.5 * relative(full.sample(), wanted)


def test_flow_models_are_guided():
    model, c = tiny.sd3(), case()
    with torch.inference_mode():
        latent, sigmas = tiny.latent(model), torch.linspace(1, 0, STEPS + 1)
        inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": latent}, STEPS, "simple",
                                                 sigmas).result[0]
        noise = model.model.process_latent_out(inversion.latents[0])
        found = [c.sample(m, tiny.cond(), CFG, latent=noise, sigmas=sigmas, negative=tiny.cond(seed=2))
                 for m in (model, guided(model, inversion, 0.3))]
    assert relative(found[1], latent) < relative(found[0], latent)


def test_rows_are_runs_of_their_own_and_the_same_again_beside_another_editor():
    c = case()
    model, hat = guided(c.model, c.inversion), tiny.encode(c.clip, "a hat")
    model = PalimpsestSEGAGuidance.execute(model, hat, "add", 5.0, 0.0, 1.0, 0.9, 1.0, 0.1, 0.4).result[0]
    starts = c.noise.repeat(2, 1, 1, 1) + torch.randn(2, *c.noise.shape[1:], generator=torch.Generator().manual_seed(2))
    together, weights = c.sample(model, latent=starts), {k: v.clone() for k, v in c.model.model.state_dict().items()}
    for row, start in zip(together, starts):
        assert relative(c.sample(model, latent=start[None])[0], row) < 1e-4
    assert torch.equal(c.sample(model, latent=starts), together) and not getattr(management, "in_training", False)
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_a_run_that_breaks_in_the_gradient_leaves_nothing():
    c = case()
    model, runs = guided(c.model, c.inversion), []

    def broken(executor, x, *args, **kwargs):
        if x.requires_grad:
            assert management.in_training
            runs.append(x)
            raise RuntimeError("out of memory")
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "broken", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        c.sample(model)
    assert runs and not management.in_training
    assert torch.equal(c.sample(guided(c.model, c.inversion)), c.sample(guided(c.model, c.inversion)))


def test_what_cannot_work_is_said():
    c = case()
    with pytest.raises(ValueError, match=r"no negative \(it has positive\)"):
        c.sample(guider=BasicGuider.execute(guided(c.model, c.inversion), c.target).result[0])
    with pytest.raises(ValueError, match="none of the 1 being sampled has it: sample the source's prompt too, set rows "
                                         "to all"):
        c.sample(guided(c.model, c.inversion, rows="source"))
