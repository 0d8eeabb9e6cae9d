"""Delta Denoising Score against the paper's equation, a closed form and the authors' notebook."""
import comfy.model_management as management
import comfy.utils
import pytest
import torch
from comfy.samplers import CFGGuider
from palimpsest.bench import twin
from palimpsest.guidance.delta_denoise import WEIGHT, descend, levels
from palimpsest.host.guiders import PairGuider, prompted
from palimpsest.host.sampling import Solver
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.guidance.delta_denoise import PalimpsestDeltaDenoise

import control_nets
import nodes as host
import tiny
from cases import case_of
from flows import velocity
from runs import relative

CFG = 7.5


def delta(model, source, target, negative, latent, iterations=6, lr=0.1, cfg=CFG, start=0.05, end=0.95, seed=3,
          **extra):
    with torch.inference_mode():
        return PalimpsestDeltaDenoise.execute(model, source, target, negative, {"samples": latent, **extra},
                                              iterations, lr, cfg, start,
                                              end, seed).result[0]["samples"]


def test_delta_denoise_is_the_papers_equation():
    """In the paper's z, on diffusers' network."""
    c, model = case_of(), tiny.sd15(output=0.6)
    unet, (source, target, null) = twin.unet(model), (e[0][0].clone() for e in (c.source, c.target, c.null))
    generator = torch.Generator().manual_seed(3)
    sampling = model.get_model_object("model_sampling")
    sigmas = levels(sampling, 6, 0.05, 0.95, generator)[:-1]
    alphas, timesteps = 1 / (1 + sigmas ** 2), sampling.timestep(sigmas)
    assert timesteps.min() >= 49 and timesteps.max() <= 950 and len(set(timesteps.tolist())) == 6
    z = first = model.model.process_latent_in(c.latent.clone())

    def guided(z, prompt, t):
        free, text = (unet(z, t, encoder_hidden_states=e).sample for e in (null, prompt))
        return free + CFG * (text - free)

    with torch.no_grad():
        for alpha, t in zip(alphas, timesteps):
            noise = torch.randn(z.shape, generator=generator)
            z_t, source_t = (alpha.sqrt() * at + (1 - alpha).sqrt() * noise for at in (z, first))
            z = z - 0.1 * 2000 / 64 ** 2 * (guided(z_t, target, t) - guided(source_t, source, t))
    ours = model.model.process_latent_in(delta(model, c.source, c.target, c.null, c.latent))
    assert relative(ours - first, z - first) < 1e-4
    assert relative(ours, first) > 0.01


@pytest.mark.parametrize("flow", [False, True])
def test_on_gaussian_pictures_the_distance_to_the_answer_shrinks_as_it_should(flow):
    """Pictures of a prompt are m + 0.5·noise. An iteration leaves 1 - step·a²·σ/(a²·0.25 + σ²) of the way."""
    means = {"source": -1.0, "target": 2.0}
    sigmas = torch.tensor([0.3, 0.9, 0.6, 0.0], dtype=torch.float64)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def model(x, sigma, model_options):
        mean, (a, s) = means[model_options["transformer_options"]["palimpsest.prompt"][0]], share(sigma[0])
        return mean + a * 0.25 / (a ** 2 * 0.25 + s ** 2) * (x - a * mean)

    def share(sigma):
        return (1 - sigma if flow else 1.0), sigma

    found = descend(model, x, sigmas, {"model_options": {"transformer_options": {}}}, disable=True, rate=2.0, flow=flow,
                    generator=torch.Generator().manual_seed(2))
    left = 1.0
    for sigma in sigmas[:-1]:
        a, s = share(sigma)
        left *= 1 - 2.0 * WEIGHT * a * s / (a ** 2 * 0.25 + s ** 2)
    torch.testing.assert_close(found, x + 3.0 * (1 - left), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, known", [
    ("eps", [-0.513843, -0.459083, -0.469572, -0.410694, -0.750083, -0.539504]),
    ("v", [-0.389120, -0.311875, -0.368187, -0.314743, -0.342777, -0.357312])])
def test_three_iterations_are_the_authors_notebooks(kind, known, monkeypatch):
    """`known`: five values and the mean of this picture with this network after DDSLoss and
    SGD of DDS_zeroshot.ipynb."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    alphas = (1 - betas).cumprod(0)[[900, 400, 100]]
    sigmas, times = (1 / alphas - 1).sqrt(), dict(zip((1 / alphas - 1).sqrt().tolist(), (900, 400, 100)))
    x = torch.linspace(-1, 1, 64 * 64).view(1, 1, 64, 64)
    drawn = iter(torch.cos(torch.arange(64 * 64.0) * n).view(1, 1, 64, 64) for n in (1, 2, 3))

    def model(x, sigma, model_options):
        text = {"source": -0.3, "target": 0.6}[model_options["transformer_options"]["palimpsest.prompt"][0]]
        z, alpha = twin.z_of(x, sigma[0]), 1 / (1 + sigma[0] ** 2)
        null, prompt = (torch.tanh(z * (1 + times[float(sigma[0])] / 1000) + e) for e in (0.0, text))
        if kind == "v":
            null, prompt = (alpha.sqrt() * v + (1 - alpha).sqrt() * z for v in (null, prompt))
        return x - sigma[0] * (null + 7.5 * (prompt - null))

    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: next(drawn))
    moved = descend(model, x, torch.cat([sigmas, torch.zeros(1)]), {"model_options": {"transformer_options": {}}},
                    disable=True,
                    rate=0.1, generator=None) - x
    moved = torch.cat([moved.flatten()[[0, 1000, 2048, 3000, 4095]], moved.mean()[None]])
    torch.testing.assert_close(moved, torch.tensor(known), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_equal_prompts_leave_the_picture_bit_for_bit(family):
    c = case_of(family=family, batch=2)
    found = delta(c.model, c.source, c.source, c.null, c.latent)
    again = c.model.model.process_latent_out(c.model.model.process_latent_in(c.latent))
    assert torch.equal(found, again) and relative(delta(c.model, c.source, c.target, c.null, c.latent), again) > 1e-3


@pytest.mark.parametrize("family", ["flux", "sd3"])
@torch.inference_mode()
def test_on_a_flow_model_the_predictions_are_the_noise_that_velocities_imply(family):
    """On the host's network itself."""
    model, prompts = tiny.FLOWS[family](), [tiny.cond(seed=seed) for seed in (1, 4, 9)]
    sampling, generator = model.get_model_object("model_sampling"), torch.Generator().manual_seed(3)
    latent = tiny.latent(model, 2)
    z = first = model.model.process_latent_in(latent)
    v_source, v_target, v_null = (velocity(model, prompt) for prompt in prompts)
    for sigma in levels(sampling, 4, 0.05, 0.95, generator)[:-1]:
        noise = torch.randn(z.shape, generator=generator)

        def eps(at, v):
            x = (1 - sigma) * at + sigma * noise
            return x + (1 - sigma) * (v_null(x, sigma) + CFG * (v(x, sigma) - v_null(x, sigma)))

        z = z - 0.1 * 2000 / 64 ** 2 * (eps(z, v_target) - eps(first, v_source))
    ours = model.model.process_latent_in(delta(model, *prompts, latent, iterations=4))
    assert relative(ours - first, z - first) < 1e-4
    assert relative(ours, first) > 1e-3


def test_flow_models_and_masks():
    model = tiny.sd3()
    with torch.inference_mode():
        latent = tiny.latent(model)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    prompts = tiny.cond(), tiny.cond(seed=2), tiny.cond(seed=3)
    found = delta(model, *prompts, latent, noise_mask=mask)
    again = model.model.process_latent_out(model.model.process_latent_in(latent))
    assert torch.equal(found[..., 4:, :], again[..., 4:, :]) and relative(found[..., :4, :], again[..., :4, :]) > 1e-3
    assert torch.equal(delta(model, prompts[0], prompts[0], prompts[2], latent), again)


@pytest.mark.parametrize("under", ["a ControlNet", "an area"])
def test_both_predictions_are_those_of_the_hosts_guider(under):
    """It gives the negative the ControlNet of the one prompt that it guides, and the area."""
    c = case_of()
    with torch.inference_mode():
        target, _ = (control_nets.plainly(c) if under == "a ControlNet" else
                     ([*c.target, *host.ConditioningSetArea().append(c.target, 32, 32, 0, 0, 1.0)[0]], None))
        guider = PairGuider(c.model, {"source": c.source, "target": target, "negative": c.null}, CFG)
        found = first_predictions(c, guider, prompted)
        for name, prompt in (("source", c.source), ("target", target)):
            guider = CFGGuider(c.model)
            guider.set_conds(prompt, c.null)
            guider.set_cfg(CFG)
            assert torch.equal(found[name], first_predictions(c, guider)[name]), name


def first_predictions(case, guider, ask=None):
    """{"source", "target": x0 of the noise} of a guider, each by ask(model, extra_args, name, x, sigma)."""
    found = {}

    def solver(model, x, sigmas, extra_args, callback, disable):
        sigma = sigmas[0].expand(len(x))
        for name in ("source", "target"):
            found[name] = ask(model, extra_args, name, x, sigma) if ask else model(x, sigma, **extra_args)
        return x

    guider.sample(torch.zeros_like(case.noise), case.noise, Solver(solver), case.sigmas, disable_pbar=True)
    return found


def test_seeds_repeat_and_a_cancelled_run_leaves_nothing():
    c, steps = case_of(), []
    weights = {k: v.clone() for k, v in c.model.model.state_dict().items()}
    whole, other = (delta(c.model, c.source, c.target, c.null, c.latent, seed=seed) for seed in (3, 4))

    def cancel(value, total, preview, node_id=None):
        steps.append((value, total))  # the host drops calls that come too soon after another
        management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            delta(c.model, c.source, c.target, c.null, c.latent)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert steps == [(1, 6)]
    assert torch.equal(delta(c.model, c.source, c.target, c.null, c.latent), whole) and not torch.equal(other, whole)
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_what_delta_denoise_cannot_do_is_said():
    c = case_of()
    edited = PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, 0, 0.8, 0, 0.5, 1.0, 0.5, "", "").result[0]
    with pytest.raises(ValueError, match="carries 1 edits"):
        delta(edited, c.source, c.target, c.null, c.latent)
    with pytest.raises(ValueError, match="from 0.9 to 0.1"):
        delta(c.model, c.source, c.target, c.null, c.latent, start=0.9, end=0.1)
