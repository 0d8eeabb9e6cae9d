"""LEDITS++'s edit against diffusers' pipeline: its masks, whole runs, and its combination with SEGA."""
from types import SimpleNamespace

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from diffusers.pipelines.ledits_pp import LEditsPPPipelineStableDiffusion
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as pipeline_module
from palimpsest.bench import twin
from palimpsest.host.sampling import Solver
from palimpsest.host.tokens import tokenize
from palimpsest.inversion.grid import independent_path
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import joint
import tiny
from dpm_solver import invert, scheduler
from runs import Case, kept, relative


@kept
def deep():
    """A small SD1.x with attention on four levels, so that one level has a quarter of the latent's side, as in SD."""
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
    """(zs, edited latent) of diffusers' pipeline: its own inversion of z_0 = latent with our draws of
    seed 4, and its own edit."""
    clip = case().clip
    texts = {text: tiny.encode(clip, text)[0][0] for text in [*(k["concept"] for k in concepts), CAPTION]}
    lengths = {text: 2 + sum(len(w.positions) for w in tokenize(clip, text).words) for text in texts}
    prompts = twin.Prompts({"": case().null[0][0], **texts}, lengths)
    pipeline = LEditsPPPipelineStableDiffusion(
        vae=None, text_encoder=prompts, tokenizer=prompts, unet=twin.unet(model), scheduler=scheduler(steps),
        safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda x, **_: (x,))
    pipeline.image_processor = SimpleNamespace(postprocess=lambda x, **_: x)
    pipeline.encode_image = lambda *_, **__: (latent, None)
    draws = independent_path(torch.zeros_like(latent), torch.tensor([1.0] * steps + [0.0]), 4)[:steps]
    monkeypatch.setattr(pipeline_module, "randn_tensor", lambda **_: draws.pop())  # the cleanest level first
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda **k: [encode(**k)[i] for i in (1, 0, 2)]  # invert() reads them in reverse order
    guidance = 3.5 if caption else 1.0
    pipeline.invert(None, source_prompt=caption, source_guidance_scale=guidance, num_inversion_steps=steps, skip=0.0)
    pipeline.encode_prompt = encode

    def each(name, default):
        return [k.get(name, default) for k in concepts]

    return pipeline.zs, pipeline(
        output_type="latent", editing_prompt=each("concept", None),
        reverse_editing_direction=[d == "remove" for d in each("direction", "add")],
        edit_guidance_scale=each("scale", 5.0), edit_warmup_steps=[round(w * steps) for w in each("warmup", 0.0)],
        edit_cooldown_steps=[round(w * steps) for w in each("cooldown", 1.0)],
        edit_threshold=each("threshold", 0.9)).images


@pytest.mark.parametrize("name, steps, size, caption", [
    ("one", 10, (16, 16), ""), ("two, one of them late", 10, (16, 24), CAPTION), ("one", 20, (24, 16), CAPTION),
    ("two, one of them late", 20, (16, 16), "")])
@torch.inference_mode()
def test_a_whole_edit_equals_diffusers_pipeline(name, steps, size, caption, monkeypatch):
    """Inversion and edit, each with a last map of zero. 20 of the steps reach t = 800, where both masks act."""
    c, model, concepts = case(), deep(), RUNS[name]
    assert (800 in scheduler(steps).timesteps) == (steps == 20)
    latent = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    source, cfg = (tiny.encode(c.clip, caption), 3.5) if caption else (c.null, 1.0)
    inversion = invert(model, model.model.process_latent_out(latent), source, scheduler(steps).sigmas, cfg, c.null,
                       last="zero")
    found = []
    for m in (edited(model, concepts), model):
        m, solver, sigmas, start = PalimpsestReplay.execute(m, inversion, 0.0).result
        found.append(model.model.process_latent_in(c.sample(m, c.null, 1.0, solver, start["samples"], sigmas)))
    zs, theirs = diffusers_run(model, latent, concepts, steps, monkeypatch, caption)
    assert relative(inversion.theta["z"].tensor, zs) < 1e-4, relative(inversion.theta["z"].tensor, zs)
    assert relative(found[1], theirs) > 0.01
    assert relative(found[0], theirs) < 1e-3, relative(found[0], theirs)


def test_the_picture_changes_only_where_both_masks_lie():
    """From the inversion's own latents, one evaluation after the first fifth. Both masks together
    keep less than each alone."""
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
    with pytest.raises(ValueError, match="this MODEL is LTXV .*or use SEGA Guidance with momentum 0"):
        edited(joint.ltx_video(), [{"concept": "a hat"}])


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
