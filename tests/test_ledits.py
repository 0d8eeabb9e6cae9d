"""LEDITS++ against diffusers' pipeline: its inversion, its masks, whole runs; and the picture's return."""
from types import SimpleNamespace

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from diffusers import DPMSolverMultistepScheduler
from diffusers.pipelines.ledits_pp import LEditsPPPipelineStableDiffusion
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as pipeline_module
from palimpsest.bench import twin
from palimpsest.editing.masks import smoothed
from palimpsest.host.sampling import Solver
from palimpsest.host.tokens import tokenize
from palimpsest.inversion import ledits
from palimpsest.inversion.ddpm import independent_path
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import Case, kept, relative

STEPS = 10


def scheduler(steps=STEPS):
    made = DPMSolverMultistepScheduler(**twin.SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=2)
    made.set_timesteps(steps)
    return made


def network(z, sigma):
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4
    return torch.tanh(z @ mix + torch.cos(3 * sigma))


def denoiser(x, sigma):
    sigma = sigma[:, None]
    return x - sigma * network(twin.z_of(x, sigma), sigma)


def path_of(x, sigmas):
    return ledits.noise_maps(denoiser, independent_path(x, sigmas, 3), sigmas, disable=True)


def test_reads_the_noise_maps_of_diffusers_but_for_the_last():
    theirs, x = scheduler(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = theirs.sigmas.double()
    path, maps, _ = path_of(x, sigmas)
    z = [twin.z_of(p, s) for p, s in zip(path, sigmas)]
    for i, t in enumerate(theirs.timesteps):
        noise, _ = pipeline_module.compute_noise(theirs, z[i + 1], z[i], t, network(z[i], sigmas[i]), 1.0)
        if i < STEPS - 1:
            assert relative(maps[i], noise) < 1e-5, i
    assert not noise.any() and maps[-1].norm() > 0.01 * x.norm()  # diffusers drops what the last step misses


@pytest.mark.parametrize("together", [1, 4])
def test_the_path_is_walked_again_from_every_level(together):
    x, sigmas = torch.randn(2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64), scheduler().sigmas.double()
    path, maps, denoised = ledits.noise_maps(denoiser, independent_path(x, sigmas, 3), sigmas, disable=True, together=together)
    assert relative(maps[5], path_of(x, sigmas)[1][5]) < 1e-9
    for first in (0, 4, STEPS - 1):
        found, before = path[first], denoised[first - 1] if first else None
        for i in range(first, STEPS):
            D = denoiser(found, sigmas[i].expand(2))
            mean, scale = ledits.mean_scale(found, ledits.towards(D, before, sigmas, i), sigmas[i], sigmas[i + 1])
            found, before = mean + scale * maps[i], D
        assert relative(found, x) < 1e-9


def invert(model, latent, source, sigmas=None, cfg=1.0, negative=None, steps=STEPS, last="auto"):
    with torch.inference_mode():
        return PalimpsestLEDITSInvert.execute(model, source, {"samples": latent}, steps, "ddim_uniform", 4, cfg, negative,
                                              sigmas, last).result[0]


@pytest.mark.parametrize("family, cfg, start", [("sd15", 1.0, 0.0), ("sd15", 3.5, 0.4), ("sd2", 1.0, 0.15), ("sdxl", 1.0, 0.5)])
def test_replay_returns_the_picture(family, cfg, start):
    model = tiny.UNETS[family](output=0.05)
    latent, negative = tiny.latent(model, 2), tiny.cond(seed=2)
    inversion = invert(model, latent, tiny.cond(), cfg=cfg, negative=negative)
    m, solver, sigmas, noise = PalimpsestReplay.execute(model, inversion, start).result
    noise = {"samples": noise["samples"].repeat(2, 1, 1, 1)}
    found, other = (SamplerCustom.execute(m, False, 0, cfg, prompt, negative, solver, sigmas, noise).result[0]["samples"]
                    for prompt in (tiny.cond(), tiny.cond(seed=5)))
    assert relative(found, latent.repeat(2, 1, 1, 1)) < 1e-5 and relative(noise["samples"], found) > 0.1
    assert relative(other, found) > 1e-3


def test_flow_models_are_refused():
    model = tiny.sd3()
    with pytest.raises(ValueError, match="LEDITS.. Invert.*SD3 MODEL predicts by flow"):
        invert(model, tiny.latent(model), tiny.cond())


def test_the_smoothing_is_a_gaussian_of_variance_one_half():
    point = torch.zeros(1, 5, 5)
    point[:, 2, 2] = 1
    found = smoothed(point)[0]
    assert float(found.sum()) == pytest.approx(1) and float(found[2, 1] / found[2, 2]) == pytest.approx(0.36788, rel=1e-4)
    assert float(found[1, 1] / found[2, 2]) == pytest.approx(0.36788 ** 2, rel=1e-4) and found[0].sum() == 0


@kept
def deep():
    """A small SD1.x with attention on four levels, so that one has a quarter of the latent's side as SD has."""
    with torch.inference_mode():
        config = comfy.supported_models.SD15(tiny.unet_config(
            [1, 1, 1, 0], 1, [1, 1, 1, 1, 1, 1, 0, 0], use_linear_in_transformer=False, num_res_blocks=[1] * 4,
            channel_mult=[1] * 4))
        return tiny.patcher(comfy.model_base.BaseModel, config, num_heads=2, output=0.6)


@kept
def case():
    return Case(size=16)


HAT, MOON = {"concept": "a straw hat", "threshold": 0.7, "scale": 8.0}, {"concept": "the moon", "direction": "remove"}
RUNS = {"one": [HAT], "two, one of them late": [HAT, {**MOON, "warmup": 0.3, "cooldown": 0.8, "threshold": 0.6}]}


def edited(model, concepts):
    for k in concepts:
        k = {"direction": "add", "scale": 5.0, "warmup": 0.0, "cooldown": 1.0, "threshold": 0.9, **k}
        model = PalimpsestLEDITS.execute(model, case().clip, **k).result[0]
    return model


CAPTION = "a red cat on a mat"


def diffusers_run(model, latent, concepts, steps, monkeypatch, caption=""):
    """(zs, edited latent) of diffusers' pipeline: its own inversion of z_0 = latent, with the draws of seed 4 that ours takes,
    and its own edit."""
    clip = case().clip
    texts = {text: tiny.encode(clip, text)[0][0] for text in [*(k["concept"] for k in concepts), CAPTION]}
    lengths = {text: 2 + sum(len(w.positions) for w in tokenize(clip, text).words) for text in texts}
    prompts = twin.Prompts({"": case().null[0][0], **texts}, lengths)
    pipeline = LEditsPPPipelineStableDiffusion(
        vae=None, text_encoder=prompts, tokenizer=prompts, unet=twin.unet(model), scheduler=scheduler(steps), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda x, **_: (x,))
    pipeline.image_processor = SimpleNamespace(postprocess=lambda x, **_: x)
    pipeline.encode_image = lambda *_, **__: (latent, None)
    draws = independent_path(torch.zeros_like(latent), torch.tensor([1.0] * steps + [0.0]), 4)[:steps]
    monkeypatch.setattr(pipeline_module, "randn_tensor", lambda **_: draws.pop())  # the cleanest level first
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda **k: [encode(**k)[i] for i in (1, 0, 2)]  # invert() reads them the other way round
    guidance = 3.5 if caption else 1.0
    pipeline.invert(None, source_prompt=caption, source_guidance_scale=guidance, num_inversion_steps=steps, skip=0.0)
    pipeline.encode_prompt = encode

    def each(name, default):
        return [k.get(name, default) for k in concepts]

    return pipeline.zs, pipeline(
        output_type="latent", editing_prompt=each("concept", None),
        reverse_editing_direction=[d == "remove" for d in each("direction", "add")],
        edit_guidance_scale=each("scale", 5.0), edit_warmup_steps=[round(w * steps) for w in each("warmup", 0.0)],
        edit_cooldown_steps=[round(w * steps) for w in each("cooldown", 1.0)], edit_threshold=each("threshold", 0.9)).images


@pytest.mark.parametrize("name, steps, size, caption", [
    ("one", 10, (16, 16), ""), ("two, one of them late", 10, (16, 24), CAPTION), ("one", 20, (24, 16), CAPTION),
    ("two, one of them late", 20, (16, 16), "")])
@torch.inference_mode()
def test_a_whole_edit_equals_diffusers_pipeline(name, steps, size, caption, monkeypatch):
    """Inversion and edit, each with its own last map zero; 20 of its steps meet t = 800, where both masks act."""
    c, model, concepts = case(), deep(), RUNS[name]
    assert (800 in scheduler(steps).timesteps) == (steps == 20)
    latent = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    source, cfg = (tiny.encode(c.clip, caption), 3.5) if caption else (c.null, 1.0)
    inversion = invert(model, model.model.process_latent_out(latent), source, scheduler(steps).sigmas, cfg, c.null, last="zero")
    found = []
    for m in (edited(model, concepts), model):
        m, solver, sigmas, start = PalimpsestReplay.execute(m, inversion, 0.0).result
        found.append(model.model.process_latent_in(c.sample(m, c.null, 1.0, solver, start["samples"], sigmas)))
    zs, theirs = diffusers_run(model, latent, concepts, steps, monkeypatch, caption)
    assert relative(inversion.theta["z"].tensor, zs) < 1e-4, relative(inversion.theta["z"].tensor, zs)
    assert relative(found[1], theirs) > 0.01
    assert relative(found[0], theirs) < 1e-3, relative(found[0], theirs)


def test_the_picture_changes_only_where_both_masks_lie():
    """From the inversion's own latents, one evaluation after the first fifth: both masks keep less than each alone."""
    c, model = case(), deep()
    at = tiny.latent(model, size=16) * 3

    def moved(concepts):
        found = []

        def walk(denoise, x, sigmas, extra_args, callback, disable):
            found.append(denoise(x, sigmas[:1], **extra_args))
            return x
        for m in (edited(model, concepts), model):
            c.sample(m, c.null, 1.0, Solver(walk), at, torch.tensor([2.0, 0.0]))
        return (found[0] - found[1]).abs().sum(1) > 1e-4

    area = {t: moved([{**HAT, "threshold": t}]).float().mean() for t in (0.0, 0.5, 0.9)}
    assert area[0.0] == 1 and area[0.9] <= 0.1 + 1e-6 and area[0.9] < area[0.5] < 0.5


def test_what_cannot_work_is_said():
    c = case()
    with pytest.raises(ValueError, match="the concept is empty"):
        edited(c.model, [{"concept": " "}])
    with pytest.raises(ValueError, match=r"LEDITS\+\+ at scale 0"):
        edited(c.model, [{"concept": "a hat", "scale": 0.0}])
    with pytest.raises(ValueError, match="this MODEL is SD3"):
        edited(tiny.sd3(), [{"concept": "a hat"}])


def test_beside_sega_either_way_round_and_each_for_itself():
    """Each of the two moves the prediction as it does alone."""
    c, hat = case(), tiny.encode(case().clip, "a hat")

    def sega(model):
        return PalimpsestSEGAGuidance.execute(model, hat, "add", 5.0, 0.0, 1.0, 0.9, 1.0, 0.1, 0.4).result[0]

    def first(model):
        return c.predictions(model, c.target, 1.0)[0]

    plain, alone = first(c.model), [first(m) for m in (sega(c.model), edited(c.model, [MOON]))]
    for both in (edited(sega(c.model), [MOON]), sega(edited(c.model, [MOON]))):
        assert relative(first(both) - plain, sum(alone) - 2 * plain) < 1e-3
