"""Proximal guidance against its functional, a run of the authors' loop, and the paper's on flow networks."""
import pytest
import torch
from comfy_extras.nodes_perpneg import PerpNegGuider
from palimpsest.bench import twin
from palimpsest.editing.inverting import invert
from palimpsest.guidance import proximal
from palimpsest.nodes.guidance.proximal import PalimpsestProximalGuidance
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from contracting import family, replay
from contracting import invert as inverted_by
from flows import starts, velocity
from node_execution import executor  # noqa: F401
from recording import Flow
from runs import Case, kept, relative


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
    for quantile in (0.5, 0.6, 0.97, 1.0):
        size = d.abs().flatten(1)
        wanted = torch.cat([size, torch.zeros_like(size)], 1).double().quantile(quantile, dim=1)
        torch.testing.assert_close(proximal.threshold(d, quantile).flatten(), wanted.float())
    dot = torch.zeros(1, 2, 1, 9, 9)
    dot[0, 1, 0, 4, 4] = -1
    assert not proximal.edited(dot, torch.tensor(0.6), 2).any()  # above the limit, but not after it shrank by the limit
    grown = proximal.edited(dot, torch.tensor(0.4), 2)
    assert grown.shape == dot.shape and grown[0, 1, 0, 2:7, 2:7].all() and grown.sum() == 25


@kept
def npi():
    with torch.inference_mode():
        return inverted_by(PalimpsestNegativePromptInvert, family("sd15", 0.2), 0.0)


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
    """The target's z_0 of the authors' loop on [source, target], with the source's prompt as the negative.

    path: z* at sigmas.
    """
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
    """The authors' l0, which shrinks as l1 does."""
    c, model = Case(steps=10), tiny.sd15(output=0.6)
    inversion = PalimpsestDDIMInvert.execute(model, c.source, {"samples": c.latent}, 10, "ddim_uniform").result[0]
    edited = PalimpsestProximalGuidance.execute(model, inversion, "l1", *settings).result[0]
    _, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    ours = model.model.process_latent_in(c.sample(edited, c.target, 7.5, solver, latent["samples"], sigmas,
                                                  negative=c.source))
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


def test_inversion_guidance_needs_eulers_steps():
    c = Flow("flux")
    found = invert("FlowEdit", c.model, c.source, {"samples": c.noise}, 3).inversion
    with pytest.raises(ValueError, match="end of Euler's step.*FlowEdit INVERSION.*turn it off"):
        PalimpsestProximalGuidance.execute(c.model, found, "l0", 0.7, 0.1, 0.6, 1, True)
    PalimpsestProximalGuidance.execute(c.model, found, "l0", 0.7, 0.1, 0.6, 1)


def test_proximal_guidance_without_effect_is_refused():
    with pytest.raises(ValueError, match="difference of two predictions.*CFG 1"):
        guided("l0", 0.7, 0.1, 0.6, 1, cfg=1.0)
    with pytest.raises(ValueError, match="plain guidance"):
        guided("l0", 0.5, 0.1, 0.6, 1)


@pytest.mark.parametrize("name, settings", [
    ("flux", (0.7, 0.5, 0.4, 1, False)), ("sd3", (0.6, 1.0, 0.3, 0, False)), ("sd3", (0.75, 0.5, 0.4, 1, True))])
def test_a_run_on_a_flow_model_is_the_paper_with_velocities(name, settings):
    """The predicted noise of a step is kept where its x0 is drawn to the source."""
    c, (quantile, rate, start, radius, latents) = Flow(name), settings
    edited = PalimpsestProximalGuidance.execute(c.model, c.inversion, "l1", *settings).result[0]
    found = c.model.model.process_latent_in(c.sample(edited, cfg=4.0))
    path, (target, null) = c.inversion.path, (velocity(c.model, p) for p in (c.target, c.null))
    x = path[0]
    for i, (n, s) in enumerate(zip(c.sigmas, c.sigmas[1:])):
        free = null(x, n)
        delta = target(x, n) - free
        limit = torch.cat([delta.abs().flatten(), torch.zeros(delta.numel())]).quantile(quantile)  # the source's is 0
        delta = delta - delta.clamp(-limit, limit)
        mask = torch.nn.functional.max_pool2d((delta.abs() > limit).float(), 2 * radius + 1, 1, radius)
        share = rate * (1 - mask) * float(n <= starts(c.model, start))
        v = free + 4.0 * delta
        x0, noise = x - n * v, x + (1 - n) * v
        x = (1 - s) * (x0 if latents else x0 - share * (x0 - path[-1])) + s * noise
        if latents:
            x = x - share * (x - path[i + 1])
    assert relative(found, x) < 1e-5
    assert relative(c.model.model.process_latent_in(c.sample(cfg=4.0)), x) > 1e-3


def test_a_long_videos_threshold_is_found():
    """161 frames at 720p; torch's quantile takes 2^24 values at most."""
    d = torch.arange(9_000_000.0).flip(0).view(1, 1, 9, 1000, 1000)
    assert float(proximal.threshold(d, 0.7)) == pytest.approx(0.4 * 9_000_000, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_guider_of_three_predictions_is_refused(scale):
    """Perp-Neg guides from the empty prompt, which is none of the two that are compared."""
    case = Case("sd15")
    edited = PalimpsestProximalGuidance.execute(case.model, case.inversion, "l0", 0.7, 0.0, 0.6, 1).result[0]
    guider = PerpNegGuider.execute(edited, case.target, case.source, case.null, 7.5, scale).result[0]
    with pytest.raises(ValueError, match="of two predictions, and this guider has another, .*sample with CFGGuider"):
        case.sample(guider=guider)
