"""Inversions that return the picture (EDICT, BDIA, Direct, DDPM, CycleDiffusion, DDCM), through the host's nodes."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from exact_inversions import NODES, STEPS, invert, picture, replay
from node_execution import executor  # noqa: F401
from runs import relative


def mse(a, b):
    return float((a - b).pow(2).mean())


OWN = [n for n in NODES if n != "DDIM"]
GUIDED = ["EDICT", "BDIA", "Direct", "DDPM"]

IDENTITIES = [(n, cfg) for n in ("Direct", "DDPM") for cfg in (1.0, 7.5)] + [("CycleDiffusion", 1.0), ("DDCM", 1.0)]


@pytest.mark.parametrize("name, cfg", IDENTITIES)
@pytest.mark.parametrize("family, start", [("sd15", 0.0), ("sd15", 0.5), ("sd2", 0.0), ("sdxl", 0.0)])
def test_replay_is_the_identity(family, name, cfg, start):
    model = tiny.UNETS[family](output=0.05)
    latent = picture(model, batch=2)
    inversion = invert(name, model, latent, cfg)
    found = replay(model, inversion, cfg, start)
    assert relative(found, latent["samples"]) < 1e-5
    assert relative(model.model.process_latent_out(inversion.latents[0]), latent["samples"]) > 0.1
    if start:
        return
    copies = replay(model, inversion, cfg, repeat=2)  # row i replays picture i mod 2
    assert relative(copies, latent["samples"].repeat(2, 1, 1, 1)) < 1e-5


@pytest.mark.parametrize("family, steps", [(f, 10) for f in tiny.UNETS] + [("sd2", 20)])
def test_coupled_and_bidirectional_return_the_picture_a_hundred_times_better_than_ddim(family, steps):
    """Latent MSE at CFG 1, with γ = 1, because 0.5 would grow a million times."""
    model = tiny.UNETS[family]()
    latent = picture(model)
    inversions = {"DDIM": invert("DDIM", model, latent, steps=steps),
                  "EDICT": invert("EDICT", model, latent, steps=steps),
                  "BDIA": invert("BDIA", model, latent, steps=steps, gamma=0.5 if steps == 10 else 1.0)}
    error = {n: mse(replay(model, i), latent["samples"]) for n, i in inversions.items()}
    assert error["EDICT"] < error["DDIM"] / 100 and error["BDIA"] < error["DDIM"] / 100, error


@pytest.mark.parametrize("name", ["EDICT", "BDIA"])
def test_replay_may_start_at_any_level(name):
    """Also an odd level, where the other one of EDICT's latents goes first."""
    model = tiny.sd15()
    latent = picture(model, batch=2)
    inversion = invert(name, model, latent, steps=6)
    for percent in (0.2, 0.4, 0.6):
        assert relative(replay(model, inversion, start=percent, repeat=2), latent["samples"].repeat(2, 1, 1, 1)) < 1e-5


@pytest.mark.parametrize("name, changed", [("EDICT", {}), ("BDIA", {"gamma": 1.0})])
def test_an_inversion_with_guidance_replays_however_the_host_batches_cond_and_uncond(name, changed, monkeypatch):
    model = tiny.sd15(output=0.05)
    latent, calls = picture(model), []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda apply, args: calls.append(len(args["cond_or_uncond"])) or apply(
        args["input"], args["timestep"], **args["c"]))
    inversion = invert(name, model, latent, 3.0, **changed)
    together = replay(watched, inversion, 3.0)
    monkeypatch.setattr(model.model, "memory_usage_factor", 1e15)
    apart = replay(watched, inversion, 3.0)
    assert {2, 1} == set(calls)
    assert relative(apart, together) < 1e-3 and relative(apart, latent["samples"]) < 1e-3
    assert relative(replay(model, inversion, 1.0), latent["samples"]) > 1e-2  # the guidance belongs to it


@pytest.mark.parametrize("family", tiny.FLOWS)
@pytest.mark.parametrize("name", ["EDICT", "BDIA", "Direct"])
def test_flow_models_replay_too(name, family):
    """To full noise and back, with a hundredth of DDIM inversion's error."""
    model = tiny.FLOWS[family](output=0.05)
    latent = picture(model)
    ddim, own = (invert(n, model, latent, sigmas=torch.linspace(1, 0, STEPS + 1)) for n in ("DDIM", name))
    assert own.latents[0].isfinite().all()
    assert mse(replay(model, own), latent["samples"]) < mse(replay(model, ddim), latent["samples"]) / 100


@pytest.mark.parametrize("name", OWN)
def test_only_the_methods_own_sampler_and_schedule_replay_it(name):
    model = tiny.sd15()
    inversion = invert(name, model)
    with pytest.raises(ValueError, match=f"{name} recorded .*leave the sampler input empty"):
        PalimpsestReplay.execute(model, inversion, 0.0, KSamplerSelect.execute("euler").result[0])
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    skipping = torch.cat([sigmas[:2], sigmas[3:]])
    with pytest.raises(ValueError, match="each step for itself.*Replay's SIGMAS"):
        SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, skipping, latent)


@pytest.mark.parametrize("name", OWN)
def test_what_was_recorded_is_plain(name):
    """θ_F holds finite float32 tensors on the CPU and provenance plain values, so both can be saved."""
    model = tiny.sd15()
    inversion = invert(name, model)
    assert inversion.method == name and len(inversion.theta) == 1
    for theta in inversion.theta.values():
        assert theta.applied_by == "step" and len(theta.tensor) == STEPS + (theta.axis == "level")
        assert theta.tensor.dtype == torch.float32 and theta.tensor.device.type == "cpu"
        assert theta.tensor.isfinite().all()
    assert all(isinstance(v, (int, float, str, tuple)) for v in inversion.provenance.values())


@pytest.mark.parametrize("name", OWN)
def test_another_prompt_edits(name):
    model = tiny.sd15()
    inversion = invert(name, model)
    assert relative(replay(model, inversion, prompt=tiny.cond(seed=4)), replay(model, inversion)) > 1e-3


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_without_a_negative_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} Invert has CFG 3 and no negative CONDITIONING"):
        invert(name, tiny.sd15(), cfg=3.0, negative=None)


@pytest.mark.parametrize("name", OWN)
def test_another_sampler_than_replays_is_refused(name):
    model = tiny.sd15()
    inversion = invert(name, model)
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    euler = KSamplerSelect.execute("euler").result[0]
    with pytest.raises(ValueError, match="connect Replay's SAMPLER"):
        SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), euler, sigmas, latent)
    SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas, latent)
