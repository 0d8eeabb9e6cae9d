"""Exact inversions: EDICT, BDIA, Direct, edit-friendly DDPM, CycleDiffusion; against closed forms, papers and the host's
nodes."""
import json
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from diffusers import DDIMScheduler
from palimpsest.editing.inverting import levels_a_forward
from palimpsest.inversion import bdia, cycle_diffusion, ddpm, edict
from palimpsest.nodes.inversion.bdia import PalimpsestBDIAInvert
from palimpsest.nodes.inversion.cycle_diffusion import PalimpsestCycleDiffusionInvert
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.direct import PalimpsestDirectInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import relative

AUTHORS = json.loads((Path(__file__).parent / "data" / "exact.json").read_text())
STEPS = 10
NEGATIVE = 9  # seed of the negative prompt


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


def mse(a, b):
    return float((a - b).pow(2).mean())


def network(z, sigma):
    """A smooth non-linear ε of z [B, …, 8] and the level, in the precision of z."""
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(z) / 3
    return torch.tanh(z @ mix + torch.cos(sigma))


def denoiser(flow):
    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        return x - s * network(x if flow else x / (1 + s ** 2).sqrt(), s)
    return model


def levels(steps, flow):
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2 * (1 if flow else 14.6)


def noisy(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 1, 3, 8)])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("steps", [10, 40])
def test_edict_returns_what_it_inverted(steps, first, flow, shape):
    model, sigmas, x = denoiser(flow), levels(steps, flow), noisy(*shape)
    pairs = edict.invert(model, x, sigmas, disable=True, flow=flow)
    assert relative(pairs[0][0], x) > 0.3 and not torch.equal(*pairs[0])
    found = edict.denoise(model, *pairs[first], sigmas[first:], disable=True, flow=flow, first=first)
    assert relative(found[0], x) < 1e-10 and relative(found[1], x) < 1e-10


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 1, 3, 8)])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("steps, gamma", [(10, 0.5), (40, 1.0)])
def test_bdia_returns_what_it_inverted(steps, gamma, first, flow, shape):
    model, sigmas, x = denoiser(flow), levels(steps, flow), noisy(*shape)
    path, offsets = bdia.invert(model, x, sigmas, disable=True, gamma=gamma, flow=flow)
    assert relative(path[0], x) > 0.3
    found = bdia.denoise(model, path[first], offsets[first], sigmas[first:], disable=True, gamma=gamma, flow=flow)
    assert relative(found, x) < 1e-10


def test_three_neighbours_of_bdia_obey_the_papers_equation():
    """z_{i-1} = γ·(z_{i+1} - z_i/a_{i+1} + b_{i+1}/a_{i+1}·ε(z_i)) + a_i·z_i + b_i·ε(z_i)."""
    sigmas, gamma = levels(10, False), 0.7
    path, _ = bdia.invert(denoiser(False), noisy(3, 8), sigmas, disable=True, gamma=gamma)
    alpha = 1 / (1 + sigmas ** 2)
    z = [x * a.sqrt() for x, a in zip(path, alpha)]

    def ab(n, c):
        a = (alpha[c] / alpha[n]).sqrt()
        return a, (1 - alpha[c]).sqrt() - a * (1 - alpha[n]).sqrt()

    for i in range(1, 10):
        eps, (a, b), (a_up, b_up) = network(z[i], sigmas[i]), ab(i, i + 1), ab(i - 1, i)
        expected = gamma * (z[i - 1] - z[i] / a_up + b_up / a_up * eps) + a * z[i] + b * eps
        assert relative(z[i + 1], expected) < 1e-12


def authors():
    """(x0, sigmas) that the authors' numbers were made with; they show z = x/√(1+σ²)."""
    return noisy(1, 1, 8, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)


def test_edict_reaches_the_latents_of_the_authors_code():
    x, sigmas = authors()
    for found, name in zip(edict.invert(denoiser(False), x, sigmas, disable=True)[0], ("x", "y")):
        z = found / (1 + sigmas[0] ** 2).sqrt()
        torch.testing.assert_close(z.flatten()[:8], torch.tensor(AUTHORS["edict"][name], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_ddpm_reads_the_noise_maps_of_the_authors_code_but_for_the_last_which_they_drop():
    x, sigmas = authors()
    draws = noisy(STEPS, 1, 8, 8, seed=2).flip(0)
    path = [*(x + s * e for s, e in zip(sigmas, draws)), x]
    maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True, eta=1.0)[1]
    expected = torch.tensor(AUTHORS["ddpm"]["z"], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([z.flatten()[:4] for z in maps[:-1]]), expected[:-1], rtol=1e-9, atol=1e-9)
    assert not expected[-1].any() and maps[-1].norm() > 0.01 * x.norm()


def test_few_steps_return_and_edit_as_in_the_authors_code_unless_the_last_residual_is_kept():
    """Their last map is zero. Kept, it returns the picture, and an edit shows what it holds of the source."""
    x, few = noisy(1, 1, 8, 8), AUTHORS["ddpm_few"]
    sigmas = torch.tensor([*few["sigmas"], 0.0], dtype=torch.float64)
    path = [*(x + s * e for s, e in zip(sigmas, noisy(4, 1, 8, 8, seed=2).flip(0))), x]
    path, maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True)

    def mirrored(x, sigma):
        s = sigma.view(-1, 1, 1, 1)
        return x - s * network((x / (1 + s ** 2).sqrt()).flip(-1), s)

    def sampled(model, choice):
        chosen = ddpm.last_residual(maps, sigmas, choice)
        return ddpm.denoise(model, path[0], lambda i, _: chosen[i], sigmas, disable=True)

    for choice in ("auto", "zero"):
        for model, name in ((denoiser(False), "back"), (mirrored, "edited")):
            expected = torch.tensor(few[name], dtype=torch.float64)
            torch.testing.assert_close(sampled(model, choice).flatten()[:8], expected, rtol=1e-9, atol=1e-9)
    assert relative(sampled(denoiser(False), "keep"), x) < 1e-10 and relative(sampled(denoiser(False), "zero"), x) > 0.1
    torch.testing.assert_close(sampled(mirrored, "keep") - sampled(mirrored, "zero"), maps[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("node", [PalimpsestDDPMInvert, PalimpsestLEDITSInvert])
@pytest.mark.parametrize("scheduler, kept", [("sgm_uniform", False), ("simple", False), ("ddim_uniform", True)])
def test_the_last_residual_stays_where_the_last_level_is_clean_or_where_asked(node, scheduler, kept):
    """Of 10 steps the last begin at sigma 0.35 or 0.04. Kept, it returns the picture."""
    model = tiny.sd15(output=0.05)
    latent = picture(model)
    seeded = {"seed": 0} if node is PalimpsestLEDITSInvert else {"eta": 1.0, "seed": 0}

    def made(**chosen):
        return node.execute(model, tiny.cond(), latent, STEPS, scheduler, **seeded, cfg=1.0, **chosen).result[0]

    auto, keep, zero = made(), made(last_residual="keep"), made(last_residual="zero")
    assert (auto.sigmas[-2] < 0.1) == kept
    z = [i.theta["z"].tensor for i in (auto, keep, zero)]
    assert torch.equal(z[0], z[1] if kept else z[2]) and torch.equal(z[1][:-1], z[2][:-1])
    assert z[1][-1].any() and not z[2][-1].any()
    assert relative(replay(model, keep), latent["samples"]) < 1e-5 < relative(replay(model, zero), latent["samples"])


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_path_of_noise_maps_is_walked_again(eta, together):
    sigmas, x = levels(STEPS, False), noisy(2, 1, 3, 8)
    for start in (ddpm.independent_path(x, sigmas, 3), cycle_diffusion.posterior_path(x, sigmas, 3, eta)):
        path, maps = ddpm.noise_maps(denoiser(False), start, sigmas, disable=True, eta=eta, together=together)
        for first in (0, 4):
            found = ddpm.denoise(denoiser(False), path[first], lambda i, _: maps[first + i], sigmas[first:], disable=True, eta=eta)
            assert relative(found, x) < 1e-10


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.1])
def test_the_noise_maps_drive_diffusers_scheduler_along_the_path(eta):
    """DDIMScheduler adds eta·σ_t·z itself: with our maps it must take every level to the next."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    alpha = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = torch.cat([((1 - alpha) / alpha).sqrt(), torch.zeros(1, dtype=torch.float64)])
    path = ddpm.independent_path(noisy(3, 8), sigmas, seed=4)
    path, maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True, eta=eta)
    z = [x / (1 + s ** 2).sqrt() for x, s in zip(path, sigmas)]
    for i, t in enumerate(scheduler.timesteps[:-1]):
        found = scheduler.step(network(z[i], sigmas[i]), t, z[i], eta=eta, variance_noise=maps[i]).prev_sample
        assert relative(found, z[i + 1]) < 1e-6, i


def test_levels_of_ddpm_are_independent_and_those_of_cycle_diffusion_share_their_noise():
    """Both have the marginal N(x_0, σ²); the posterior keeps √(1 - η²·(1 - σ'²/σ²)) of the noise from level to level."""
    x, sigmas, eta = torch.zeros(1, 40000), torch.tensor([14.6, 5.0, 2.0, 0.7, 0.0]), 0.6
    for path, kept in ((ddpm.independent_path(x, sigmas, 3), lambda r: 0.0),
                       (cycle_diffusion.posterior_path(x, sigmas, 3, eta), lambda r: (1 - eta ** 2 * (1 - r ** 2)) ** 0.5)):
        assert torch.equal(path[-1], x)
        noise = [z / s for z, s in zip(path[:-1], sigmas)]
        assert all(float(n.std()) == pytest.approx(1, abs=0.02) for n in noise)
        for n, c, r in zip(noise, noise[1:], (sigmas[1:-1] / sigmas[:-2]).tolist()):
            assert float((n * c).mean()) == pytest.approx(kept(r), abs=0.02)


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def arguments(name, cfg=1.0, **changed):
    """The node of a method, and its own inputs at their defaults."""
    node = NODES[name]
    own = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    own |= {"steps": STEPS, **({"cfg": cfg, "negative": tiny.cond(seed=NEGATIVE)} if "cfg" in own else {})}
    return node, own | changed


NODES = {"EDICT": PalimpsestEDICTInvert, "BDIA": PalimpsestBDIAInvert, "Direct": PalimpsestDirectInvert,
         "DDPM": PalimpsestDDPMInvert, "CycleDiffusion": PalimpsestCycleDiffusionInvert, "DDIM": PalimpsestDDIMInvert}
OWN = [n for n in NODES if n != "DDIM"]
GUIDED = ["EDICT", "BDIA", "Direct", "DDPM"]


def invert(name, model, latent=None, cfg=1.0, source=None, **changed):
    node, own = arguments(name, cfg, **changed)
    return node.execute(model, source or tiny.cond(), latent or picture(model), **own).result[0]


def replay(model, inversion, cfg=1.0, start=0.0, prompt=None, negative=None, repeat=1):
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, start).result
    latent = {"samples": latent["samples"].repeat(repeat, *[1] * (latent["samples"].ndim - 1))}
    negative = negative or tiny.cond(seed=NEGATIVE)
    return SamplerCustom.execute(m, False, 0, cfg, prompt or tiny.cond(), negative, solver, sigmas, latent).result[0]["samples"]


IDENTITIES = [(n, cfg) for n in ("Direct", "DDPM") for cfg in (1.0, 7.5)] + [("CycleDiffusion", 1.0)]


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
    """Latent MSE at CFG 1, γ = 1 where 0.5 would grow a million times."""
    model = tiny.UNETS[family]()
    latent = picture(model)
    inversions = {"DDIM": invert("DDIM", model, latent, steps=steps), "EDICT": invert("EDICT", model, latent, steps=steps),
                  "BDIA": invert("BDIA", model, latent, steps=steps, gamma=0.5 if steps == 10 else 1.0)}
    error = {n: mse(replay(model, i), latent["samples"]) for n, i in inversions.items()}
    assert error["EDICT"] < error["DDIM"] / 100 and error["BDIA"] < error["DDIM"] / 100, error


@pytest.mark.parametrize("name", ["EDICT", "BDIA"])
def test_replay_may_start_at_any_level(name):
    """An odd level too, where the other of EDICT's latents goes first."""
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
    """To full noise and back, a hundred times nearer than DDIM inversion."""
    model = tiny.FLOWS[family](output=0.05)
    latent = picture(model)
    ddim, own = (invert(n, model, latent, sigmas=torch.linspace(1, 0, STEPS + 1)) for n in ("DDIM", name))
    assert own.latents[0].isfinite().all()
    assert mse(replay(model, own), latent["samples"]) < mse(replay(model, ddim), latent["samples"]) / 100


@pytest.mark.parametrize("name", ["DDPM", "CycleDiffusion"])
def test_stochastic_methods_refuse_flow_models(name):
    with pytest.raises(ValueError, match=f"{name} Invert.*SD3 MODEL predicts by flow.*DDIM Invert"):
        invert(name, tiny.sd3())


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_an_offset_is_its_share_of_the_distance_to_the_source(scale):
    """Each step of the replay ends (1 - scale) of the way that it had missed the source by."""
    model = tiny.sd15(output=0.05)
    inversion, plain = invert("Direct", model, cfg=7.5, scale=scale), invert("DDIM", model)
    assert all(torch.equal(a, b) for a, b in zip(inversion.latents, plain.latents))
    offsets, sigmas = inversion.theta["offset"].tensor, inversion.sigmas
    drifted = replay(model, inversion, 7.5)
    error = relative(model.model.process_latent_in(drifted), inversion.latents[-1])
    assert error < 1e-5 if scale == 1 else error > 1e-2
    if scale == 0:
        assert not offsets.count_nonzero()
        assert relative(drifted, replay(model, plain, 7.5)) < 1e-4
        return
    m, solver, _, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    for steps in range(1, 3):
        x = model.model.process_latent_in(SamplerCustom.execute(
            m, False, 0, 7.5, tiny.cond(), tiny.cond(seed=NEGATIVE), solver, sigmas[:steps + 1], latent).result[0]["samples"])
        missed = offsets[steps - 1] / scale
        torch.testing.assert_close(inversion.latents[steps] - x, (1 - scale) * missed, rtol=1e-3, atol=1e-3)


def test_direct_inversion_gives_editors_what_ddim_inversion_gives():
    """The editors' source branch reads the same latents, to the bit; the guided pass that records the offsets is paid beside."""
    model = tiny.sdxl()
    direct, plain = invert("Direct", model, picture(model, 2), cfg=7.5), invert("DDIM", model, picture(model, 2))
    assert all(torch.equal(a, b) for a, b in zip(direct.latents, plain.latents))
    assert torch.equal(direct.sigmas, plain.sigmas) and direct.trajectory == plain.trajectory == "deterministic"
    assert plain.provenance["evaluations"] == 2 * STEPS and direct.provenance["evaluations"] == 3 * 2 * STEPS


@pytest.mark.parametrize("name", ["DDPM", "CycleDiffusion"])
def test_levels_share_a_forward_only_where_nothing_reads_one_sigma_for_the_batch(name):
    model = tiny.sd15()
    rows = []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda apply, args: rows.append(len(args["input"])) or apply(
        args["input"], args["timestep"], **args["c"]))
    latent, source = picture(model, batch=2), tiny.cond(batch=2)
    alone, shared = (invert(name, m, latent, source=source) for m in (watched, model))
    assert rows == [2] * STEPS
    assert alone.provenance["evaluations"] == shared.provenance["evaluations"] == 2 * STEPS
    assert relative(alone.theta["z"].tensor, shared.theta["z"].tensor) < 1e-5


@pytest.mark.parametrize("name", ["DDPM", "CycleDiffusion"])
def test_the_seed_alone_draws_the_levels(name):
    model = tiny.sd15()
    torch.manual_seed(0)
    first = invert(name, model, seed=7)
    torch.manual_seed(1)
    again, other = invert(name, model, seed=7), invert(name, model, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.latents, again.latents))
    assert torch.equal(first.theta["z"].tensor, again.theta["z"].tensor)
    assert not torch.equal(first.latents[0], other.latents[0])
    assert first.trajectory == "independent" and not first.covers(float(first.sigmas[:2].mean()))


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
    """θ_F holds finite float32 tensors on the CPU and provenance plain values, so that they can be saved."""
    model = tiny.sd15()
    inversion = invert(name, model)
    assert inversion.method == name and len(inversion.theta) == 1
    for theta in inversion.theta.values():
        assert theta.applied_by == "step" and len(theta.tensor) == STEPS + (theta.axis == "level")
        assert theta.tensor.dtype == torch.float32 and theta.tensor.device.type == "cpu" and theta.tensor.isfinite().all()
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


def test_a_gamma_that_many_steps_would_blow_up_is_refused():
    with pytest.raises(ValueError, match=r"gamma 0.5, 50 steps .* by 10\^15.*1.0 from 40 steps"):
        invert("BDIA", tiny.sd15(), steps=50)
    with pytest.raises(ValueError, match=r"by 10\^400"):
        invert("BDIA", tiny.sd15(), steps=400, gamma=0.1)


@pytest.mark.parametrize("side, rows, levels", [(64, 1, 8), (64, 3, 2), (128, 1, 2), (128, 2, 1), (256, 1, 1)])
def test_levels_share_a_forward_that_the_host_makes_room_for(side, rows, levels):
    assert levels_a_forward(tiny.sd15(), {"samples": torch.zeros(rows, 4, side, side)}, tiny.cond()) == levels


@pytest.mark.parametrize("name", ["EDICT", "BDIA", "Direct", "DDPM", "CycleDiffusion"])
def test_another_sampler_than_replays_is_refused(name):
    model = tiny.sd15()
    inversion = invert(name, model)
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    euler = KSamplerSelect.execute("euler").result[0]
    with pytest.raises(ValueError, match="connect Replay's SAMPLER"):
        SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), euler, sigmas, latent)
    SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas, latent)
