"""DDIM Invert and Replay Inversion on the host's own sampler nodes."""
import dataclasses

import comfy.k_diffusion.sampling
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import nodes as host_nodes
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
from palimpsest.editing.editor import Editor, editors
from palimpsest.editing.replay import Replayed
from palimpsest.editing.run import attach
from palimpsest.host.sampling import Solver, check_family, fingerprint, prediction_type, sample, schedule, split_at
from palimpsest.inversion.trajectory import Theta
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import relative

STEPS = 12
FAMILIES = {**tiny.UNETS, **tiny.FLOWS}


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    return tiny.sd15()


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def invert(model, latent=None, steps=STEPS, source=None, scheduler="ddim_uniform", sigmas=None):
    return PalimpsestDDIMInvert.execute(model, source or tiny.cond(), latent or picture(model), steps, scheduler, sigmas).result


def replay(model, inversion, start=0.0, sampler=None, add_noise=False, prompt=None, cfg=1.0, seed=5):
    """SamplerCustom on the four outputs of Replay."""
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, start, sampler).result
    prompt, negative = prompt or tiny.cond(), tiny.cond(seed=9)
    found = SamplerCustom.execute(m, add_noise, seed, cfg, prompt, negative, solver, sigmas, latent)
    return found.result[0]["samples"]


def state(model):
    """Everything of a MODEL that a run could have left something in."""
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    return weights, repr(model.model_options), hooks, {k: list(v) for k, v in model.wrappers.items()}


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def plain(model):
    """A run without the pack, as KSampler does it."""
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
    assert relative(z, inversion.latents[-1]) > 0.03  # something happened
    assert errors[0] < 0.08 and errors[1] < min(0.04, 0.7 * errors[0]), errors


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
    torch.testing.assert_close(seen, list(inversion.latents[:0:-1]))  # each step starts from the cleaner latent, unscaled
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


def test_a_percent_that_falls_on_a_level_starts_there():
    model = tiny.sd3()
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [split_at(model, sigmas, p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 1, 2, 3, 4]


def test_a_start_that_leaves_no_step_is_refused(model):
    inversion = invert(model)[0]
    with pytest.raises(ValueError, match=r"100% leaves no step of .*ddim_uniform steps"):
        PalimpsestReplay.execute(model, inversion, 1.0)


def test_sigmas_win_over_steps_and_scheduler(model):
    own = schedule(model, "karras", 5)
    inversion, _, sigmas = invert(model, steps=50, sigmas=own)
    assert torch.equal(sigmas, own)
    assert inversion.provenance["steps"] == 5 and inversion.provenance["scheduler"] == "own"


def test_a_hosts_solver_runs_from_the_latent_as_it_is(model):
    """Heun takes the recorded noise back too, and not by euler's way."""
    inversion = invert(model)[0]
    heun = replay(model, inversion, sampler=KSamplerSelect.execute("heun").result[0])
    assert torch.equal(heun, replay(model, inversion, sampler=KSamplerSelect.execute("heun").result[0], add_noise=True))
    assert relative(heun, replay(model, inversion)) > 1e-3


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_samplers_that_add_noise_are_known_by_what_they_do(name, model):
    """The same start with two seeds, on a closed-form denoiser: only a solver that draws noise gives two results."""
    perfect = model.clone()
    perfect.set_model_unet_function_wrapper(
        lambda _, args: args["input"] / (1 + args["timestep"].view(-1, 1, 1, 1) ** 2))
    solver = Solver.of(comfy.samplers.sampler_object(name))
    found = [sample(perfect, tiny.cond(), picture(model)["samples"], schedule(model, "normal", 6), solver, seed=seed)
             for seed in (1, 2)]
    assert solver.adds_noise != torch.equal(*found)


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
    """The host cancels from its progress hook, inside the callback of the first step."""
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
    (tiny.cond(batch=3), "2 pictures, the source CONDITIONING 3 prompts"),
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


def test_another_family_is_refused_and_another_checkpoint_said(model, said):
    inversion = invert(model)[0]
    said()  # of its steps
    for other, message in ((tiny.sd2(), "prediction is eps, this MODEL's is v"),
                           (tiny.sdxl(), "model is BaseModel.*SDXL"), (tiny.flux(), "model is BaseModel.*Flux")):
        with pytest.raises(ValueError, match=message):
            PalimpsestReplay.execute(other, inversion, 0.0)
    check_family(model, inversion)
    assert not said()
    for _ in range(2):  # each node says so of itself
        check_family(tiny.sd15(seed=1), inversion)
        assert ["another checkpoint" in text for text in said()] == [True]


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


def test_the_fingerprint_knows_how_wide_a_prompt_the_model_reads():
    widths = {name: (f.context_width, f.pooled_width) for name, f in ((n, fingerprint(make())) for n, make in FAMILIES.items())}
    assert widths == {"sd15": (64, None), "sd2": (64, None), "sdxl": (64, 32 + 6 * 256), "flux": (64, 32), "sd3": (64, 32),
                      "qwen": (None, None), "zimage": (64, None)}


def test_parametrisations_without_a_known_step_are_refused_by_name(model):
    names = "COSMOS_RFLOW", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM"  # an older host knows fewer
    for kind in (getattr(comfy.model_sampling, name) for name in names if hasattr(comfy.model_sampling, name)):
        strange = model.clone()
        sampling = type("Sampling", (comfy.model_sampling.ModelSamplingDiscrete, kind), {})
        strange.add_object_patch("model_sampling", sampling(model.model.model_config))
        with pytest.raises(ValueError, match=f"predicts by {kind.__name__}"):
            prediction_type(strange)
    assert [prediction_type(FAMILIES[f]()) for f in ("sd15", "sd2", "sdxl", "sd3")] == ["eps", "v", "eps", "flow"]


def test_replay_marks_the_model_and_refuses_a_method_it_does_not_know(model):
    inversion = invert(model)[0]
    m = PalimpsestReplay.execute(model, inversion, 0.0).result[0]
    (mark,) = editors(m)
    assert type(mark) is Replayed and mark.inversion is inversion and mark.replays
    with pytest.raises(ValueError, match="made by Telepathy.*knows DDIM"):
        PalimpsestReplay.execute(model, dataclasses.replace(inversion, method="Telepathy"), 0.0)


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("name", ["uncond", "cond"])
def test_learned_embeddings_take_the_place_of_the_conditioning_step_by_step(model, name, cfg):
    """Replay with an embedding a step equals one run of a single step after another with that embedding as CONDITIONING."""
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
        return  # the host does not ask for it
    with pytest.raises(ValueError, match="learned nothing.*Replay's SIGMAS"):
        sample(m, positive, latent["samples"], sigmas, Solver(comfy.k_diffusion.sampling.sample_dpm_2), cfg, negative)


def test_the_noise_of_the_inversion_is_that_of_its_own_prompt(model):
    """The source prompt is used: another one gives other noise."""
    a, b = invert(model, source=tiny.cond(seed=1))[0], invert(model, source=tiny.cond(seed=2))[0]
    assert relative(a.latents[0], b.latents[0]) > 1e-3


def test_guider_without_a_negative(model):
    inversion = invert(model)[0]
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    guider = BasicGuider.execute(m, tiny.cond()).result[0]
    noise = DisableNoise.execute().result[0]
    found = SamplerCustomAdvanced.execute(noise, guider, solver, sigmas, latent).result[0]["samples"]
    assert torch.equal(found, replay(model, inversion))
