"""DDIM Invert on every family: what it holds, where it comes from, and what it refuses."""
import dataclasses

import comfy.k_diffusion.sampling
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import pytest
import torch
from palimpsest.editing.editor import Editor
from palimpsest.editing.inverting import levels_a_forward
from palimpsest.editing.run import attach
from palimpsest.host.sampling import fingerprint, schedule

import tiny
from node_execution import executor  # noqa: F401
from replaying import (
    FAMILIES,
    STEPS,
    invert,
    model,  # noqa: F401
    picture,
)
from runs import relative


@pytest.mark.parametrize("side, rows, levels", [(64, 1, 8), (64, 3, 2), (128, 1, 2), (128, 2, 1), (256, 1, 1)])
def test_levels_share_a_forward_that_the_host_makes_room_for(side, rows, levels):
    assert levels_a_forward(tiny.sd15(), {"samples": torch.zeros(rows, 4, side, side)}, tiny.cond()) == levels


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inversion_holds_its_trajectory_and_says_where_it_comes_from(family):
    model = FAMILIES[family]()
    latent = picture(model, batch=2)
    inversion, noise, sigmas = invert(model, latent)
    assert torch.equal(sigmas, schedule(model, "ddim_uniform", STEPS)) and torch.equal(inversion.sigmas, sigmas)
    torch.testing.assert_close(inversion.latents[-1], model.model.process_latent_in(latent["samples"]), rtol=0, atol=0)
    torch.testing.assert_close(model.model.process_latent_in(noise["samples"]), inversion.latents[0])
    assert noise.keys() == {"samples"}
    assert inversion.batch == 2 and inversion.shape == latent["samples"].shape[1:]
    steps = len(sigmas) - 1
    provenance = dict(inversion.provenance)
    assert provenance.pop("seconds") > 0
    assert provenance == {"steps": steps, "scheduler": "ddim_uniform", "evaluations": 2 * steps, "patches": ()}
    assert inversion.fingerprint == fingerprint(model) and inversion.method == "DDIM"


def test_sigmas_win_over_steps_and_scheduler(model):
    own = schedule(model, "karras", 5)
    inversion, _, sigmas = invert(model, steps=50, sigmas=own)
    assert torch.equal(sigmas, own)
    assert inversion.provenance["steps"] == 5 and inversion.provenance["scheduler"] == "own"


def control():
    return [[tiny.cond()[0][0], {"control": object()}]]


@pytest.mark.parametrize("source, message", [
    (tiny.cond() + tiny.cond(), "2 entries.*Combine"),
    (control(), "'control'.*Apply ControlNet"),
    ([[torch.zeros(1, 8, 64), {"area": (4, 4, 0, 0), "strength": 1.0}]], "'area'.*Set Area"),
    ([[torch.zeros(1, 8, 64), {"mask": torch.ones(1, 8, 8)}]], "'mask'.*Set Mask"),
    ([[torch.zeros(1, 8, 64), {"start_percent": 0.0, "end_percent": 0.5}]], "'start_percent'.*Timestep Range"),
    ([[torch.zeros(1, 8, 64), {"gligen": ()}]], "'gligen'.*GLIGEN"),
    ([[torch.zeros(1, 8, 64), {"hooks": object()}]], "'hooks'"),
    (tiny.cond(batch=3), "source CONDITIONING has 3 prompts, .* 2 pictures"),
])
def test_a_source_that_an_inversion_cannot_keep_is_refused(model, source, message):
    with pytest.raises(ValueError, match=message):
        invert(model, picture(model, batch=2), source=source)


@pytest.mark.parametrize("latent, message", [
    (torch.full((1, 4, 8, 8), torch.nan), "256 of 256 values .* NaN.*fp32"),
    (torch.zeros(1, 4, 8, 8), "empty.*VAE Encode"),
    (torch.ones(1, 16, 8, 8), "16 channels.*works on 4"),
])
def test_a_latent_that_holds_no_picture_is_refused(model, latent, message):
    with pytest.raises(ValueError, match=message):
        invert(model, {"samples": latent})


@pytest.mark.parametrize("sigmas, message", [
    (torch.tensor([0.0, 1.0, 14.0]), "0 is followed by 1"),
    (torch.tensor([14.0, 1.0]), "the last is 1"),
    (torch.tensor([]), "no step"),
])
def test_sigmas_that_are_no_whole_schedule_are_refused(model, sigmas, message):
    with pytest.raises(ValueError, match=message):
        invert(model, sigmas=sigmas)


def test_an_edited_model_is_not_inverted(model):
    @dataclasses.dataclass(frozen=True)
    class Edit(Editor):
        inversion: object = None

    with pytest.raises(ValueError, match="DDIM Invert.*1 edit"):
        invert(attach(model, Edit()))


def test_each_picture_has_its_prompt_or_all_share_one(model):
    pictures = picture(model, batch=2)
    prompts = tiny.cond(batch=2)
    both = invert(model, pictures, source=prompts)[0]
    second = [[prompts[0][0][1:], {"pooled_output": prompts[0][1]["pooled_output"][1:]}]]
    alone = invert(model, {"samples": pictures["samples"][1:]}, source=second)[0]
    for a, b in zip(both.latents, alone.latents):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-4)


def lora(model):
    """The model with a LoRA of rank 2 on every cross-attention query."""
    generator = torch.Generator().manual_seed(8)
    weights = {}
    for name, p in model.model.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            key = name.removesuffix(".weight")
            weights[f"{key}.lora_up.weight"] = torch.randn(p.shape[0], 2, generator=generator)
            weights[f"{key}.lora_down.weight"] = torch.randn(2, p.shape[1], generator=generator)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patched = model.clone()
    assert patched.add_patches(comfy.lora.load_lora(weights, keys), 1.0)
    return patched


def test_a_lora_is_recorded_and_leaves_the_fingerprint(model):
    patched = lora(model)
    inversion = invert(patched)[0]
    count = sum(name.endswith("attn2.to_q.weight") for name, _ in model.model.named_parameters())
    assert inversion.provenance["patches"] == (f"{count} patched weights",)
    assert inversion.fingerprint == fingerprint(patched) == fingerprint(tiny.sd15())
    assert not torch.equal(inversion.latents[0], invert(model)[0].latents[0])


def test_the_noise_of_the_inversion_is_that_of_its_own_prompt(model):
    """The source prompt is used: another prompt gives other noise."""
    a, b = invert(model, source=tiny.cond(seed=1))[0], invert(model, source=tiny.cond(seed=2))[0]
    assert relative(a.latents[0], b.latents[0]) > 1e-3
