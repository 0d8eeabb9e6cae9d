"""Replay Inversion on the host's own sampler nodes."""
import dataclasses

import comfy.k_diffusion.sampling
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DisableNoise,
    KSamplerSelect,
    RandomNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
    SamplerEulerAncestral,
)
from palimpsest.editing.editor import editors
from palimpsest.editing.replay import Replayed
from palimpsest.host.sampling import Solver, prediction_type, sample
from palimpsest.inversion.trajectory import Theta
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import nodes as host_nodes
import tiny
from node_execution import executor  # noqa: F401
from replaying import (
    FAMILIES,
    STEPS,
    invert,
    model,  # noqa: F401
    picture,
    replay,
)
from runs import relative


def state(model):
    """Everything in a MODEL that a run could change."""
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    return weights, repr(model.model_options), hooks, {k: list(v) for k, v in model.wrappers.items()}


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def plain(model):
    """A run without the pack, as in KSampler."""
    prompts = tiny.cond(), tiny.cond(seed=2)
    return host_nodes.common_ksampler(model, 3, 4, 4.0, "dpmpp_2m", "normal", *prompts, picture(model))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_returns_the_picture_within_the_ddim_error_which_shrinks_with_the_steps(family):
    """Within 8 % of the picture's norm at 16 steps and 4 % at 32: first order in the step, as Euler is."""
    model = FAMILIES[family](output=0.05)
    latent = picture(model, batch=2)
    errors = []
    for steps in (16, 32):
        inversion = invert(model, latent, steps)[0]
        errors.append(relative(replay(model, inversion), latent["samples"]))
    z = inversion.latents[0] / (1 if prediction_type(model) == "flow" else (1 + inversion.sigmas[0] ** 2).sqrt())
    assert relative(z, inversion.latents[-1]) > 0.03  # the inversion changed the latent
    assert errors[0] < 0.08 and errors[1] < min(0.04, 0.7 * errors[0]), errors


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "flux"])
def test_every_sampler_node_gives_the_same_bytes_whatever_noise_it_offers(family):
    model = FAMILIES[family]()
    inversion = invert(model)[0]
    expected = replay(model, inversion, prompt=tiny.cond(seed=4), cfg=3.0)
    assert torch.equal(replay(model, inversion, prompt=tiny.cond(seed=4), cfg=3.0, add_noise=True, seed=77), expected)
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    guider = CFGGuider.execute(m, tiny.cond(seed=4), tiny.cond(seed=9), 3.0).result[0]
    for noise in (DisableNoise.execute(), RandomNoise.execute(123)):
        found = SamplerCustomAdvanced.execute(noise.result[0], guider, solver, sigmas, latent).result[0]["samples"]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", tiny.UNETS)
def test_ksampler_advanced_starts_from_the_noise_with_add_noise_off(family):
    model = FAMILIES[family]()
    inversion, noise, _ = invert(model)
    node = host_nodes.KSamplerAdvanced()
    found = node.sample(model, "disable", 5, STEPS, 1.0, "euler", "ddim_uniform", tiny.cond(), tiny.cond(seed=9), noise,
                        0, 10000, "disable")[0]["samples"]
    torch.testing.assert_close(found, replay(model, inversion), rtol=1e-5, atol=1e-5)


def test_flow_models_replay_from_full_noise_where_the_hosts_sampler_discards_the_latent():
    model, seen = tiny.sd3(output=0.05), []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda apply, args: seen.append(args["input"]) or apply(
        args["input"], args["timestep"], **args["c"]))
    inversion = invert(watched, sigmas=torch.linspace(1, 0, STEPS + 1))[0]
    # each step starts from the cleaner latent, unscaled
    torch.testing.assert_close(seen, list(inversion.latents[:0:-1]))
    assert inversion.sigmas[0] == 1 and all(x.isfinite().all() for x in inversion.latents)
    assert relative(replay(model, inversion), picture(model)["samples"]) < 0.05


@pytest.mark.parametrize("start", [0.3, 0.8])
def test_a_later_start_begins_at_that_percent_of_the_full_schedule(model, start):
    inversion = invert(model)[0]
    _, _, sigmas, latent = PalimpsestReplay.execute(model, inversion, start).result
    first = len(inversion.sigmas) - len(sigmas)
    limit = model.get_model_object("model_sampling").percent_to_sigma(start)
    assert inversion.sigmas[first] <= limit < inversion.sigmas[first - 1]
    torch.testing.assert_close(model.model.process_latent_in(latent["samples"]), inversion.latents[first])
    assert not torch.equal(replay(model, inversion, start), replay(model, inversion))


def test_a_start_that_leaves_no_step_is_refused(model):
    inversion = invert(model)[0]
    with pytest.raises(ValueError, match=r"100% leaves no step of .*ddim_uniform steps"):
        PalimpsestReplay.execute(model, inversion, 1.0)


def test_a_hosts_solver_runs_from_the_latent_as_it_is(model):
    """Heun also brings the recorded noise back, on a path that differs from euler's."""
    inversion = invert(model)[0]
    heun = replay(model, inversion, sampler=KSamplerSelect.execute("heun").result[0])
    assert torch.equal(heun, replay(model, inversion, sampler=KSamplerSelect.execute("heun").result[0], add_noise=True))
    assert relative(heun, replay(model, inversion)) > 1e-3


def test_replay_says_that_noise_costs_the_reconstruction(model, caplog):
    inversion = invert(model)[0]
    for sampler in (None, KSamplerSelect.execute("euler").result[0], SamplerEulerAncestral.execute(0.0, 1.0).result[0]):
        replay(model, inversion, sampler=sampler)
    assert "reconstruction" not in caplog.text
    assert replay(model, inversion, sampler=SamplerEulerAncestral.execute(1.0, 1.0).result[0]).isfinite().all()
    assert caplog.text.count("reconstruction is not promised") == 1


def test_a_sampler_that_is_no_ksampler_is_refused_by_name(model):
    class Exotic(comfy.samplers.Sampler):
        pass

    with pytest.raises(ValueError, match="Exotic.*KSamplerSelect"):
        PalimpsestReplay.execute(model, invert(model)[0], 0.0, Exotic())
    solver = PalimpsestReplay.execute(model, invert(model)[0], 0.0).result[1]
    assert Solver.of(solver) is solver


def test_masks_and_empty_latents_cannot_enter_replays_sampler(model):
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, invert(model)[0], 0.0).result
    for changed, message in (({**latent, "noise_mask": torch.ones(1, 8, 8)}, "noise_mask.*Latent Blend"),
                             ({"samples": torch.zeros_like(latent["samples"])}, "empty.*Replay's LATENT")):
        with pytest.raises(ValueError, match=message):
            SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas, changed)


def test_the_same_inputs_give_the_same_bytes(model):
    first, second = invert(model)[0], invert(model)[0]
    assert all(torch.equal(a, b) for a, b in zip(first.latents, second.latents))
    assert torch.equal(replay(model, first), replay(model, second))


def test_the_model_samples_as_before(model):
    expected, before = plain(model), state(model)
    inversion = invert(model)[0]
    replay(model, inversion, cfg=4.0)
    assert same(state(model), before) and not editors(model)
    assert torch.equal(plain(model)["samples"], expected["samples"])


def cancel(value, total, preview, node_id=None):
    raise comfy.model_management.InterruptProcessingException()


@pytest.mark.parametrize("run", ["invert", "replay"])
def test_a_cancelled_run_leaves_nothing(model, run):
    """The host cancels from its progress hook, in the callback of the first step."""
    inversion = invert(model)[0]
    expected, before = plain(model), state(model)
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            invert(model) if run == "invert" else replay(model, inversion)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert same(state(model), before)
    assert torch.equal(plain(model)["samples"], expected["samples"])
    assert all(torch.equal(a, b) for a, b in zip(invert(model)[0].latents, inversion.latents))


def test_inputs_are_not_changed(model):
    latent, source = picture(model), tiny.cond()
    kept = latent["samples"].clone(), source[0][0].clone(), list(source[0][1])
    inversion = invert(model, latent, source=source)[0]
    replay(model, inversion)
    assert torch.equal(latent["samples"], kept[0])
    assert torch.equal(source[0][0], kept[1]) and list(source[0][1]) == kept[2]


def test_replay_marks_the_model_and_refuses_a_method_it_does_not_know(model):
    inversion = invert(model)[0]
    m = PalimpsestReplay.execute(model, inversion, 0.0).result[0]
    (mark,) = editors(m)
    assert type(mark) is Replayed and mark.inversion is inversion and mark.replays
    with pytest.raises(ValueError, match="made by Telepathy.*knows BDIA.*DDIM"):
        PalimpsestReplay.execute(model, dataclasses.replace(inversion, method="Telepathy"), 0.0)


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("name", ["uncond", "cond"])
def test_learned_embeddings_take_the_place_of_the_conditioning_step_by_step(model, name, cfg):
    """Replay with one embedding per step equals single-step runs in a row with that embedding as CONDITIONING."""
    inversion, _, sigmas = invert(model)
    embeddings = torch.randn(len(sigmas) - 1, 1, 8, tiny.DIM, generator=torch.Generator().manual_seed(5))
    learned = dataclasses.replace(inversion, theta={name: Theta(embeddings, "step", "prediction")})
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, learned, 0.0).result
    positive, negative = tiny.cond(seed=8), tiny.cond(seed=9)
    got = sample(m, positive, latent["samples"], sigmas, solver, cfg, negative)
    x = latent["samples"]
    for i, embedding in enumerate(embeddings):
        own = [[embedding, tiny.cond(seed=8)[0][1]]]
        pair = (positive, own) if name == "uncond" else (own, negative)
        x = sample(model, pair[0], x, sigmas[i:i + 2], solver, cfg, pair[1])
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)
    if (name, cfg) == ("uncond", 1.0):
        return  # the host does not read it
    with pytest.raises(ValueError, match="learned nothing.*Replay's SIGMAS"):
        sample(m, positive, latent["samples"], sigmas, Solver(comfy.k_diffusion.sampling.sample_dpm_2), cfg, negative)


def test_guider_without_a_negative(model):
    inversion = invert(model)[0]
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    guider = BasicGuider.execute(m, tiny.cond()).result[0]
    noise = DisableNoise.execute().result[0]
    found = SamplerCustomAdvanced.execute(noise, guider, solver, sigmas, latent).result[0]["samples"]
    assert torch.equal(found, replay(model, inversion))
