"""Null-text optimisation."""
import dataclasses
import json
from pathlib import Path

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from diffusers import DDIMScheduler
from palimpsest.bench.null_text import published
from palimpsest.inversion import null_text
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.null_text import PalimpsestNullTextOptimize
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import cancelled_in, relative

CFG, STEPS = 7.5, 5
EVERY = {**tiny.UNETS, **tiny.FLOWS}


def inverted(model, steps=STEPS, batch=1):
    with torch.inference_mode():
        picture = {"samples": model.model.process_latent_out(tiny.latent(model, batch))}
        return PalimpsestDDIMInvert.execute(model, tiny.cond(), picture, steps, "ddim_uniform").result[0]


def optimise(model, inversion, iterations=10, tolerance=0.0, start="source prompt", negative=None, cfg=CFG):
    with torch.inference_mode():
        return PalimpsestNullTextOptimize.execute(model, inversion, cfg, iterations, tolerance, start,
                                                  negative).result[0]


def replay(model, inversion, cfg=CFG):
    with torch.inference_mode():
        m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
        found = SamplerCustom.execute(m, False, 5, cfg, tiny.cond(), tiny.cond(seed=9), solver, sigmas, latent)
        return model.model.process_latent_in(found.result[0]["samples"])


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_nothing_stays_in_the_model(family):
    model = EVERY[family]()
    inversion = inverted(model)
    weights = {name: id(p) for name, p in model.model.named_parameters()}
    before, training = replay(model, inversion), getattr(comfy.model_management, "in_training", False)
    optimise(model, inversion, 1)
    assert torch.equal(replay(model, inversion), before)
    assert {name: id(p) for name, p in model.model.named_parameters()} == weights
    assert comfy.model_management.in_training == training


def test_a_cancelled_run_stops_at_the_next_update_and_leaves_nothing(monkeypatch):
    model = tiny.sd15()
    inversion = inverted(model)
    before = replay(model, inversion)
    assert cancelled_in(4, model, lambda: optimise(model, inversion)) == 4
    assert torch.equal(replay(model, inversion), before)


def linear(sigmas, steps=4, batch=2):
    """A denoiser that is linear in the embedding, x0 = mean over tokens · mix + x/2, and a pivot that
    guidance 1 does not follow."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=generator)
    source = torch.randn(1, 3, 6, generator=generator)
    path = [torch.randn(batch, 6, generator=generator) * (1 + float(s)) for s in sigmas]

    def model(x, sigma, embedding=source):
        return embedding.expand(len(x), -1, -1).mean(1) @ mix + x / 2

    return model, source, path


def test_lands_on_the_pivot_where_the_network_can():
    """The model is linear in the embedding, so every step can be solved exactly, whatever the pivot."""
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0])
    model, source, path = linear(sigmas)
    landed = []
    theta, history = null_text.optimise(model, model, path, sigmas, source, cfg=CFG, iterations=60, tolerance=1e-11,
                                        callback=lambda state: landed.append(state["x"]), disable=True)
    assert theta.tensor.shape == (4, 2, 3, 6) and theta.axis == "step"
    for reached, pivot in zip(landed, path[1:]):
        assert relative(reached, pivot) < 1e-4
    assert all(first > 1e-3 for first, _, _ in history)  # guidance alone does not reach the pivot
    x = path[0]
    for i, embedding in enumerate(theta.tensor):  # the paper's plain guided Euler steps, with what was learned
        denoised = (1 - CFG) * model(x, None, embedding) + CFG * model(x, None)
        x = x + (sigmas[i + 1] - sigmas[i]) / sigmas[i] * (x - denoised)
    assert relative(x, path[-1]) < 1e-4


def test_a_picture_that_is_near_enough_rests():
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0])
    model, source, path = linear(sigmas)
    x = path[0][:1]
    for i in range(4):  # the first picture's pivot is what the source embedding gives anyway
        x = x + (sigmas[i + 1] - sigmas[i]) / sigmas[i] * (x - model(x, None))
        path[i + 1][:1] = x
    theta, history = null_text.optimise(model, model, path, sigmas, source, cfg=CFG, tolerance=1e-9, disable=True)
    assert all(updates > 0 for *_, updates in history)
    assert torch.equal(theta.tensor[:, 0], source.expand(4, -1, -1))


@pytest.mark.parametrize("family", EVERY)
def test_no_step_ends_worse_than_it_began_and_replay_comes_nearer(family):
    """Guidance amplifies the inversion's error. With the learned embeddings, the replay at the
    same CFG has a smaller one."""
    model = EVERY[family]()
    inversion = inverted(model)
    learned = optimise(model, inversion, 6)
    history = learned.provenance["losses"]
    assert len(history) == STEPS and all(last <= first for first, last, _ in history)
    clean = inversion.latents[-1]
    assert relative(replay(model, learned), clean) < 0.9 * relative(replay(model, inversion, 1.0), clean)
    assert learned.method == "Null-Text" and learned.provenance["trajectory"] == "DDIM"


def test_prompts_of_several_pictures_are_their_own():
    """Four pictures under two prompts. A negative with more rows than pictures is refused."""
    model = tiny.sd15()
    with torch.inference_mode():
        pictures = {"samples": model.model.process_latent_out(tiny.latent(model, 4))}
        inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(batch=2), pictures, 3, "ddim_uniform").result[0]
    learned = optimise(model, inversion, 1, tolerance=1.0)
    assert torch.equal(learned.theta["uncond"].tensor, tiny.cond(batch=2)[0][0].repeat(2, 1, 1).expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="3 prompts, and there are 4 pictures"):
        optimise(model, inversion, start="negative", negative=tiny.cond(batch=3))


def test_counts_a_forward_once_and_a_backward_twice():
    model = tiny.sd15()
    inversion = inverted(model, batch=2)
    # per step: the source's forward, 4 of the embedding's, 3 backward, each with 2 rows
    learned = optimise(model, inversion, 3)
    assert learned.provenance["evaluations"] == inversion.provenance["evaluations"] + STEPS * 2 * (1 + 4 + 3 * 2)


def test_guided_sampling_and_its_losses_equal_diffusers():
    """The steps of diffusers' DDIM with the learned embeddings as unconditional ones reach Replay's result. The
    losses of guidance with the unlearned embedding are those of diffusers' steps."""
    model, steps = tiny.sd15(), 20
    inversion = inverted(model, steps)
    learned = optimise(model, inversion, 1, tolerance=1e-7)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                              clip_sample=False,
                              timestep_spacing="leading", set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    zs = [x / (1 + s ** 2).sqrt() for x, s in zip(inversion.latents, inversion.sigmas)]
    z, worst = zs[0], 0.0
    with torch.inference_mode():
        source = tiny.cond()[0][0]
        for i, t in enumerate(scheduler.timesteps):
            def eps(context):
                return model.model.diffusion_model(z, t.float()[None], context=context)
            null = learned.theta["uncond"].tensor[i]
            guided = eps(null) + CFG * (eps(source) - eps(null))
            z = scheduler.step(guided, t, z).prev_sample
            last = learned.provenance["losses"][i][1]
            worst = max(worst, abs(float((z - zs[i + 1]).square().mean()) / last - 1))
    assert relative(z, replay(model, learned)) < 1e-4
    assert worst < 1e-2
    assert relative(learned.theta["uncond"].tensor[-1], source) > 1e-4  # something was learned


def test_the_benchmarks_peer_is_the_published_loop():
    """Our embeddings are those that diffusers' community pipeline learns on a network of closed form."""
    expected = json.loads((Path(__file__).parents[1] / "data"
                           / "null_text.json").read_text(encoding="utf-8"))["embeddings"]
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              timestep_spacing="leading",
                              steps_offset=0)
    scheduler.set_timesteps(50)
    generator, double = torch.Generator().manual_seed(0), {"dtype": torch.float64}
    mix, words = (torch.randn(n, 16, generator=generator, **double) / k for n, k in ((16, 4), (6, 2)))
    cond, null = (torch.randn(1, 3, 6, generator=generator, **double) for _ in range(2))
    zs = [torch.randn(1, 1, 4, 4, generator=generator, **double) for _ in range(51)][::-1]
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1, **double)])
    path = [z * (1 + s ** 2).sqrt() for z, s in zip(zs, sigmas)]

    def model(x, sigma, embedding=cond):
        t = scheduler.timesteps[int((sigmas[:-1] - sigma[0]).abs().argmin())]
        z = x.flatten(1) / (1 + sigma[:, None] ** 2).sqrt()
        eps = torch.tanh(z @ mix + embedding.mean(1) @ words + torch.cos(t.double() / 100))
        return x - sigma.view(-1, 1, 1, 1) * eps.view_as(x)

    learned = published(model, model, path, sigmas, null, CFG, 10)
    for found, numbers in zip(learned[::10], expected, strict=True):
        assert found.flatten()[:4].tolist() == pytest.approx(numbers, abs=1e-8)


def test_a_null_prompt_of_another_length_learns_what_its_repetition_would():
    """With a source of 16 tokens, twice the same 8, a null prompt of 8 learns the same, and the
    host repeats it in Replay."""
    model = tiny.sd15(output=1.0)
    inversion, null = inverted(model, 2), tiny.cond(seed=9)
    twice = [[inversion.conditioning[0][0].repeat(1, 2, 1), inversion.conditioning[0][1]]]
    found, same = (optimise(model, i, 1, start="negative", negative=null)
                   for i in (dataclasses.replace(inversion, conditioning=twice), inversion))
    learned, start = found.theta["uncond"].tensor, null[0][0]
    assert relative(learned, start.expand_as(learned)) > 1e-3
    torch.testing.assert_close(learned, same.theta["uncond"].tensor, rtol=1e-3, atol=1e-3)
    assert relative(replay(model, found), replay(model, same)) < 1e-3


def test_refuses_what_it_cannot_follow():
    model = tiny.sd15()
    inversion = inverted(model)
    with pytest.raises(ValueError, match="connect the empty prompt and set start to negative"):
        optimise(model, inversion, start="negative")
    with pytest.raises(ValueError, match="connect the empty prompt and set start to negative"):
        optimise(model, inversion, negative=tiny.cond(seed=9))
    with pytest.raises(ValueError, match="embedding is 96 wide, the source's 64: encode both with the same CLIP"):
        optimise(model, inversion, start="negative", negative=[[torch.zeros(1, 8, 96), {}]])
    with torch.inference_mode():
        edict = PalimpsestEDICTInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 3, "ddim_uniform",
                                              0.93,
                                              1.0).result[0]
    with pytest.raises(ValueError, match="connect DDIM Invert"):
        optimise(model, edict)
    with pytest.raises(ValueError, match="another family"):
        optimise(tiny.sd2(), inversion)


def test_another_cfg_is_said_once_a_run(said):
    model = tiny.sd15()
    learned = optimise(model, inverted(model), 1)
    for _ in range(2):
        replay(model, learned, 3.0)
        assert ["made for CFG 7.5 and is sampled at 3" in text for text in said()] == [True]
    replay(model, optimise(model, inverted(model), 1))
    assert not said()
