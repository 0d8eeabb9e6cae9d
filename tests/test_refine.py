"""Fixed-point and ReNoise inversion, negative-prompt inversion and proximal guidance."""
import comfy.k_diffusion.sampling
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from palimpsest.bench import twin
from palimpsest.guidance import proximal
from palimpsest.inversion import ddim, fixed_point, renoise
from palimpsest.inversion.negative_prompt import slerp
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.guidance.proximal import PalimpsestProximalGuidance
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.fixed_point import PalimpsestFixedPointInvert
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert
from palimpsest.nodes.inversion.renoise import PalimpsestReNoiseInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import Case, kept, relative

euler = comfy.k_diffusion.sampling.sample_euler
STEPS = 5


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@kept
def family(name, output=0.05):
    """A small network scaled down until its steps contract."""
    return {**tiny.UNETS, **tiny.FLOWS}[name](output=output)


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


def invert(node, model, *settings, steps=STEPS, batch=1, source=None, **kwargs):
    given = model, source or tiny.cond(), picture(model, batch), steps, "ddim_uniform"
    return node.execute(*given, *settings, **kwargs).result[0]


def replay(model, inversion, cfg=1.0, negative=None, edited=None, prompt=None):
    m, solver, sigmas, latent = PalimpsestReplay.execute(edited or model, inversion, 0.0).result
    prompts = prompt or tiny.cond(), negative or tiny.cond(seed=9)
    found = SamplerCustom.execute(m, False, 5, cfg, *prompts, solver, sigmas, latent)
    return model.model.process_latent_in(found.result[0]["samples"])


def lost(model, inversion):
    return relative(replay(model, inversion), inversion.latents[-1])


def gaussian(x, sigma):
    """The perfect denoiser of N(0, 1): ε = x·σ/(1+σ²), so an Euler step is a product, its inverse a quotient."""
    return x / (1 + sigma.view(-1, 1) ** 2)


def curved(x, sigma):
    """A denoiser that mixes the values of a latent, and bends."""
    return x - sigma.view(-1, 1) * torch.tanh(x @ MIX)


MIX = 0.6 * torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def start(rows=2):
    return torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def levels(steps, top=14.6):
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2 * top


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("flow", [False, True])
def test_one_iteration_is_ddim_inversion_to_the_bit(memory, flow):
    x, sigmas = start(), levels(8, 1.0)
    expected = ddim.invert(curved, x, sigmas, disable=True, flow=flow)
    for found in (fixed_point.invert(curved, x, sigmas, disable=True, flow=flow, iterations=1, memory=memory)[0],
                  renoise.invert(curved, x, sigmas, disable=True, flow=flow, iterations=0)[0]):
        assert len(found) == 9 and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("memory", [0, 2])
def test_iterations_reach_the_exact_inverse_of_eulers_step(memory):
    x, sigmas = start(), levels(30)
    path, used = fixed_point.invert(gaussian, x, sigmas, disable=True, iterations=2000, tolerance=1e-15, memory=memory)
    exact = x
    for clean, noisy in zip(sigmas.flip(0), sigmas.flip(0)[1:]):
        exact = exact / (1 - (noisy - clean) * noisy / (1 + noisy ** 2))
    assert relative(path[0], exact) < 1e-12
    assert relative(euler(gaussian, path[0], sigmas, disable=True), x) < 1e-12
    assert len(used) == 30 and max(used) < 2000


def test_the_round_trip_improves_with_every_iteration_and_faster_under_anderson():
    x, sigmas = start(), levels(10, 1.0)

    def error(iterations, memory):
        settings = {"iterations": iterations, "tolerance": 0.0, "memory": memory}
        path, _ = fixed_point.invert(curved, x, sigmas, disable=True, **settings)
        return relative(euler(curved, path[0], sigmas, disable=True), x)

    plain, mixed = [error(n, 0) for n in (1, 2, 4, 8)], [error(n, 2) for n in (1, 2, 4, 8)]
    assert all(b < a / 2 for a, b in zip(plain, plain[1:]))
    assert mixed[2] < plain[2] and mixed[3] < plain[3] / 30, (plain, mixed)


def test_anderson_solves_a_linear_step_of_two_dimensions_in_four_evaluations():
    """The weights are the least squares ones: with m differences an affine map of m dimensions is solved exactly."""
    mix = torch.tensor([[0.5, 0.3], [-0.2, 0.4]], dtype=torch.float64)
    x, errors = fixed_point.iterate(lambda x: x @ mix + 1, torch.zeros(3, 2, dtype=torch.float64), 4, 0.0, 2)
    exact = torch.linalg.solve((torch.eye(2) - mix).mT, torch.ones(2, dtype=torch.float64))
    assert relative(x, exact.expand(3, 2)) < 1e-6 and errors[1] > 1e-2


@pytest.mark.parametrize("memory", [0, 2])
def test_a_picture_is_inverted_as_it_would_be_alone_and_rests_when_it_has_arrived(memory):
    settings = {"disable": True, "iterations": 40, "tolerance": 1e-6, "memory": memory}
    pair = torch.cat([start(1), 0.01 * start(1).flip(1)])  # the second is nearly linear and arrives at another time
    both, used = fixed_point.invert(curved, pair, levels(10, 1.0), **settings)
    alone = [fixed_point.invert(curved, x[None], levels(10, 1.0), **settings) for x in pair]
    for i, (path, _) in enumerate(alone):
        torch.testing.assert_close(torch.stack(both)[:, i], torch.stack(path)[:, 0], rtol=1e-12, atol=1e-12)
    assert used == [max(pair) for pair in zip(*(u for _, u in alone))] and alone[0][1] != alone[1][1]


def test_steps_that_do_not_contract_are_told(caplog):
    sigmas = torch.tensor([1.0, 0.0])
    fixed_point.invert(lambda x, s: x - 3 * s.view(-1, 1) * x, start(), sigmas, disable=True, iterations=4)
    assert "does not contract at sigma 1:" in caplog.text and "1 is DDIM" in caplog.text


@pytest.mark.parametrize("name", [*tiny.UNETS, *tiny.FLOWS])
def test_ten_steps_return_ten_times_nearer_than_ddim_inversion(name):
    model = family(name)
    before = lost(model, invert(PalimpsestDDIMInvert, model, steps=10))
    inversion = invert(PalimpsestFixedPointInvert, model, 10, 1e-6, "anderson", steps=10)
    few = invert(PalimpsestFixedPointInvert, model, 3, 1e-6, "anderson", steps=10)
    assert lost(model, inversion) < min(before / 1000, lost(model, few)) or lost(model, inversion) < 1e-6
    assert lost(model, few) < before / 10
    assert sum(inversion.provenance["iterations"]) == inversion.provenance["evaluations"] < 100
    assert len(inversion.provenance["iterations"]) == inversion.provenance["steps"]


def test_on_the_miniature_three_iterations_at_ten_steps_return_ten_times_nearer():
    """A trained model on a picture it can draw: 15 times on this scene."""
    model, clip, vae = load_miniature()
    edit = held_out_edit(3, "colour")
    source = clip.encode_from_tokens_scheduled(clip.tokenize(edit.source_text))
    latent = {"samples": vae.encode(torch.from_numpy(edit.source_image)[None])}
    plain, fixed = (node.execute(model, source, latent, 10, "ddim_uniform", *settings).result[0] for node, settings in (
        (PalimpsestDDIMInvert, ()), (PalimpsestFixedPointInvert, (3, 1e-5, "anderson"))))
    errors = [relative(replay(model, i, prompt=source, negative=source), i.latents[-1]) for i in (plain, fixed)]
    assert errors[1] < errors[0] / 10, errors


def test_renoising_averages_the_last_predictions_and_all_of_them_at_early_levels():
    x, sigmas = start(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    settings = {"iterations": 4, "average": 2, "early_iterations": 2, "early": 0.6}
    path, theta = renoise.invert(curved, x, sigmas, disable=True, flow=True, **settings)

    def predictions(x, noisy, step, count):
        found, z = [], x
        for _ in range(count):
            found.append(torch.tanh(z @ MIX))  # ε of `curved`
            z = x + step * found[-1]
        return found

    first = x + 0.5 * sum(predictions(x, 0.5, 0.5, 2)) / 2
    second = first + 0.5 * sum(predictions(first, 1.0, 0.5, 5)[3:]) / 2
    torch.testing.assert_close(path, [second, first, x], rtol=1e-12, atol=1e-12)
    assert not theta


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_guess_of_a_step_is_the_samplers_own_latent(eta):
    """DDIM's z = x/√(1+σ²), as it stands; of Euler ancestral it is x that does."""
    seen, sigmas = [], torch.tensor([4.0, 1.5, 0.0], dtype=torch.float64)

    def watched(x, sigma):
        seen.append((x, float(sigma[0])))
        return curved(x, sigma)

    path, _ = renoise.invert(watched, start(), sigmas, disable=True, iterations=3, eta=eta)
    for clean, (noisy, c) in enumerate([(1.5, 0.0), (4.0, 1.5)]):
        scale = 1.0 if eta else ((1 + noisy ** 2) / (1 + c ** 2)) ** 0.5
        guess = next(x for x, sigma in seen if sigma == noisy)
        torch.testing.assert_close(guess, path[-1 - clean] * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheduler, timesteps", [(None, [999, 749, 499, 249]), ("sgm_uniform", [999, 749.25, 499.5, 249.75]),
                                                  ("ddim_uniform", [751, 501, 251, 1])])
def test_the_defaults_take_turbos_levels_and_one_of_four_is_early_on_any_schedule(scheduler, timesteps):
    """The authors' 4 steps of SDXL Turbo: three of 1 + 9 predictions, and one under timestep 250 whose 5 are averaged."""
    model = family("sdxl")
    own = {i.id: i.default for i in PalimpsestReNoiseInvert.define_schema().inputs if getattr(i, "default", None) is not None}
    own |= {"scheduler": scheduler} if scheduler else {}
    inversion = PalimpsestReNoiseInvert.execute(model, tiny.cond(), picture(model), **own).result[0]
    sampling = model.get_model_object("model_sampling")
    expected = [float(sampling.sigma(torch.tensor(float(t)))) for t in timesteps]
    assert inversion.sigmas[:-1].tolist() == pytest.approx(expected, rel=1e-5)
    assert inversion.provenance["evaluations"] == 3 * 10 + 5


def test_renoising_with_the_last_prediction_alone_is_fixed_point_iteration():
    x, sigmas = start(), levels(6, 1.0)
    found = renoise.invert(curved, x, sigmas, disable=True, iterations=4, average=1)[0]
    expected = fixed_point.invert(curved, x, sigmas, disable=True, iterations=5, tolerance=0.0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*tiny.UNETS, *tiny.FLOWS])
def test_renoise_returns_nearer_than_ddim_inversion(name):
    model = family(name)
    inversion = invert(PalimpsestReNoiseInvert, model, 3, 2, 4, 0.0, 0)
    assert lost(model, inversion) < lost(model, invert(PalimpsestDDIMInvert, model)) / 4
    assert inversion.provenance["evaluations"] == 4 * inversion.provenance["steps"] and not inversion.theta


@pytest.mark.parametrize("name", tiny.UNETS)
def test_noise_correction_makes_ancestral_steps_exact(name):
    """All but the last, which adds no noise; a poor estimate, of few renoisings, is taken back exactly all the same."""
    model, settings = family(name, 0.2), (1, 1, 1, 1.0)
    inversion = invert(PalimpsestReNoiseInvert, model, *settings, 7, batch=2)
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    short = SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas[:-1], latent)
    assert relative(model.model.process_latent_in(short.result[0]["samples"]), inversion.latents[-2]) < 1e-4
    noise = inversion.theta["noise"].tensor
    assert noise.shape[:2] == (inversion.provenance["steps"], 2) and not noise[-1].any() and noise[:-1].std() > 0.5
    other = invert(PalimpsestReNoiseInvert, model, *settings, 8, batch=2)
    assert relative(other.latents[0], inversion.latents[0]) > 1e-2
    again = invert(PalimpsestReNoiseInvert, model, *settings, 7, batch=2)
    assert all(map(torch.equal, again.latents, inversion.latents))


def test_ancestral_renoise_is_replayed_by_its_own_sampler_and_on_its_own_levels_only():
    model = family("sd15")
    inversion = invert(PalimpsestReNoiseInvert, model, 1, 1, 1, 0.5, 0)
    with pytest.raises(ValueError, match="ReNoise Ancestral recorded noise.*leave the sampler input empty"):
        PalimpsestReplay.execute(model, inversion, 0.0, KSamplerSelect.execute("euler").result[0])
    assert not inversion.covers(float(inversion.sigmas[:2].mean()))
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    four = {"samples": latent["samples"].repeat(4, 1, 1, 1)}
    rows = SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas, four).result[0]["samples"]
    torch.testing.assert_close(rows[3:], rows[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="each step for itself: sample with Replay's SIGMAS"):
        SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas[::2], latent)
    with pytest.raises(ValueError, match="eta 0.5.*flow model.*eta to 0"):
        invert(PalimpsestReNoiseInvert, family("sd3"), 1, 1, 1, 0.5, 0)
    with pytest.raises(ValueError, match="last 3 predictions, 1 iterations make 2"):
        invert(PalimpsestReNoiseInvert, model, 1, 3, 1, 0.0, 0)


@pytest.mark.parametrize("name", tiny.UNETS)
def test_the_negative_prompt_inversion_cancels_guidance(name):
    """Embedding and, on SDXL, the pooled vector: replay at CFG 7.5 is replay at CFG 1."""
    model = family(name, 0.2)
    inversion = invert(PalimpsestNegativePromptInvert, model, 0.0, batch=2, source=tiny.cond(batch=2))
    plain = invert(PalimpsestDDIMInvert, model, batch=2, source=tiny.cond(batch=2))
    expected = replay(model, plain, prompt=tiny.cond(batch=2))
    assert relative(replay(model, inversion, 7.5, prompt=tiny.cond(batch=2)), expected) < 1e-4
    assert relative(replay(model, plain, 7.5, prompt=tiny.cond(batch=2)), expected) > 0.05
    assert inversion.provenance["evaluations"] == plain.provenance["evaluations"]
    assert [t.tensor.shape[:2] for t in inversion.theta.values()] == [(1, 2), (1, 2)]  # no copies a step


def test_a_learned_pooled_embedding_serves_an_inpaint_model():
    """Whose other conditions ask for the latent's size too."""
    model = tiny.sdxl(in_channels=9)
    model.model.set_inpaint()
    inversion, plain = (invert(node, model, *more) for node, more in ((PalimpsestNegativePromptInvert, [0.0]), (PalimpsestDDIMInvert, [])))
    assert relative(replay(model, inversion, 7.5), replay(model, plain)) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_interpolation_ends_at_the_connected_negative(name):
    model = family(name, 0.2)
    inversion = invert(PalimpsestNegativePromptInvert, model, 1.0, negative=tiny.cond(seed=9))
    plain = invert(PalimpsestDDIMInvert, model)
    expected = replay(model, plain, 4.0, tiny.cond(seed=9))
    torch.testing.assert_close(replay(model, inversion, 4.0, tiny.cond(seed=2)), expected, rtol=1e-4, atol=1e-4)
    halfway = invert(PalimpsestNegativePromptInvert, model, 0.5, negative=tiny.cond(seed=9))
    assert relative(replay(model, halfway, 4.0), expected) > 1e-3
    with pytest.raises(ValueError, match="interpolation of 0.5 and no negative"):
        invert(PalimpsestNegativePromptInvert, model, 0.5)
    with pytest.raises(ValueError, match="96 wide, the source's 64: .*interpolation to 0"):
        invert(PalimpsestNegativePromptInvert, model, 0.5, negative=[[torch.zeros(1, 8, 96), tiny.cond()[0][1]]])


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_interpolation_repeats_prompts_of_unequal_length_as_the_host_does(weight):
    """With a null prompt of 6 tokens and a source of 8, every embedding of 24 tokens is the same attention."""
    model, null = family("sd15", 1.0), tiny.cond(tokens=6, seed=9)
    found = invert(PalimpsestNegativePromptInvert, model, weight, negative=null)
    source, learned = tiny.cond()[0][0], found.theta["uncond"].tensor
    torch.testing.assert_close(learned[0], slerp(weight, source.repeat(1, 3, 1), null[0][0].repeat(1, 4, 1)))
    if weight == 1:
        plain = invert(PalimpsestDDIMInvert, model)
        torch.testing.assert_close(replay(model, found, 4.0), replay(model, plain, 4.0, null), rtol=1e-4, atol=1e-4)


def test_slerp_walks_the_sphere_at_constant_speed():
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    third = torch.tensor(torch.pi / 6)
    torch.testing.assert_close(slerp(1 / 3, a, b)[0], torch.stack([third.cos(), third.sin()]))
    assert torch.equal(slerp(1 / 3, a[1:], b[1:]), a[1:])  # equal embeddings have no angle


def test_prox_minimises_its_functional():
    """Against a search: argmin over z of (z - d)²/2 + λ·|z| for l1, and of (z - d)²/2 + λ²/2·[z ≠ 0] for l0."""
    d, z, limit = torch.linspace(-3, 3, 61)[:, None], torch.linspace(-4, 4, 8001), torch.tensor(1.01)
    penalties = {"l1": limit * z.abs(), "l0": limit ** 2 / 2 * (z.abs() > 1e-6)}
    for norm, penalty in penalties.items():
        best = z[((z - d) ** 2 / 2 + penalty).argmin(1)]
        torch.testing.assert_close(proximal.prox(d[:, 0], limit, norm), best, rtol=0, atol=2e-3)


def test_the_threshold_is_each_pictures_quantile_beside_a_source_of_zeros_and_the_edit_grows_by_cells():
    d = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    limit = proximal.threshold(d, 0.7)
    assert [round(float((row.abs() > t).float().mean()), 2) for row, t in zip(d, limit)] == [0.6, 0.6]
    dot = torch.zeros(1, 2, 1, 9, 9)
    dot[0, 1, 0, 4, 4] = -1
    assert not proximal.edited(dot, torch.tensor(0.6), 2).any()  # over the limit, but not once shrunk by it
    grown = proximal.edited(dot, torch.tensor(0.4), 2)
    assert grown.shape == dot.shape and grown[0, 1, 0, 2:7, 2:7].all() and grown.sum() == 25


@kept
def npi():
    with torch.inference_mode():
        return invert(PalimpsestNegativePromptInvert, family("sd15", 0.2), 0.0)


def guided(*settings, hook=None, cfg=7.5):
    model = family("sd15", 0.2)
    edited = PalimpsestProximalGuidance.execute(model, npi(), *settings).result[0]
    if hook:
        edited.set_model_sampler_post_cfg_function(hook)
    return replay(model, npi(), cfg, prompt=tiny.cond(seed=4), edited=edited)


def test_proximal_guidance_keeps_the_largest_differences():
    shares = []

    def hook(args):
        shares.append(float((args["cond_denoised"] != args["uncond_denoised"]).float().mean()))
        return args["denoised"]

    source, plain = npi().latents[-1], replay(family("sd15", 0.2), npi(), 7.5, prompt=tiny.cond(seed=4))
    found = guided("l0", 0.7, 0.0, 0.6, 1, hook=hook)
    assert len(shares) == npi().provenance["steps"] and all(share == pytest.approx(0.6, abs=0.01) for share in shares)
    assert relative(found, source) < relative(plain, source)
    drawn = guided("l0", 0.7, 1.0, 0.0, 1)
    same = (drawn - source).abs() < 1e-5
    assert 0.05 < same.float().mean() < 0.7  # η = 1: the source itself outside the grown edit
    assert not (found - source).abs().lt(1e-5).any()


def authors(unet, path, sigmas, timesteps, source, target, quantile, rate, start, radius, latents, cfg=7.5):
    """The target's z_0 of the authors' loop on [source, target], the negative being the source's prompt; path: z* at sigmas."""
    alpha, z = 1 / (1 + sigmas ** 2), path[0].repeat(2, 1, 1, 1)
    negative, positive = source.repeat(2, 1, 1), torch.cat([source, target])
    for i, t in enumerate(timesteps):
        free, text = (unet(z, t, encoder_hidden_states=prompt).sample for prompt in (negative, positive))
        delta = text - free
        limit = delta.abs().quantile(quantile)
        delta = delta - delta.clamp(-limit, limit)
        eps, mask = free + cfg * delta, (delta.abs() > limit).float()
        mask = torch.nn.functional.max_pool2d(mask, 2 * radius + 1, 1, radius)
        rate_t = rate * (1 - mask) * (t < 1000 * (1 - start))
        z_0 = (z - (1 - alpha[i]).sqrt() * eps) / alpha[i].sqrt()
        if not latents:
            z_0 = z_0 - rate_t * (z_0 - path[-1])
        z = alpha[i + 1].sqrt() * z_0 + (1 - alpha[i + 1]).sqrt() * eps
        if latents:
            z = z - rate_t * (z - path[i + 1])
    return z[1:]


@pytest.mark.parametrize("settings", [(0.7, 0.1, 0.6, 1, False), (0.75, 1.0, 0.6, 0, True), (0.6, 0.5, 0.4, 1, True)])
def test_a_run_of_proximal_guidance_is_the_authors(settings):
    """Their l0, which shrinks as l1 does."""
    c, model = Case(steps=10), tiny.sd15(output=0.6)
    inversion = PalimpsestDDIMInvert.execute(model, c.source, {"samples": c.latent}, 10, "ddim_uniform").result[0]
    edited = PalimpsestProximalGuidance.execute(model, inversion, "l1", *settings).result[0]
    _, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    ours = model.model.process_latent_in(c.sample(edited, c.target, 7.5, solver, latent["samples"], sigmas, negative=c.source))
    path = [twin.z_of(x, s) for x, s in zip(inversion.latents, sigmas)]
    timesteps = model.get_model_object("model_sampling").timestep(sigmas[:-1])
    theirs = authors(twin.unet(model), path, sigmas, timesteps, c.source[0][0], c.target[0][0], *settings)
    assert relative(ours, theirs) < 1e-4, relative(ours, theirs)


def test_every_widget_of_proximal_guidance_acts():
    base = ("l0", 0.7, 0.5, 0.4, 1)
    settings = [base, ("l1", *base[1:]), ("l0", 0.8, *base[2:]), (*base[:2], 0.1, *base[3:]), (*base[:3], 0.9, 1),
                (*base[:4], 3), (*base, True)]
    found = [guided(*s) for s in settings]
    assert all(relative(a, found[0]) > 1e-4 for a in found[1:]) and torch.equal(guided(*base), found[0])


def test_proximal_guidance_without_effect_is_refused():
    with pytest.raises(ValueError, match="difference of two predictions.*CFG 1"):
        guided("l0", 0.7, 0.1, 0.6, 1, cfg=1.0)
    with pytest.raises(ValueError, match="plain guidance"):
        guided("l0", 0.5, 0.1, 0.6, 1)
