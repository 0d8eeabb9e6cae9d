"""DDCM against the authors' sampler, and what carries over of the source."""
import json
from pathlib import Path

import pytest
import torch
from palimpsest.blending.local_blend import LocalBlend
from palimpsest.editing.run import attach
from palimpsest.inversion import ddcm

import tiny
from closed_form import denoiser, levels, network, noisy
from exact_inversions import STEPS, invert, picture, replay
from node_execution import executor  # noqa: F401
from runs import relative

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "ddcm.json").read_text())


def prompted(*parts):
    """A model of the closed-form network: the sum of weight · ε(z + prompt) over (weight, prompt)."""
    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        z = x / (1 + s ** 2).sqrt()
        return x - s * sum(weight * network(z + prompt, s) for weight, prompt in parts)
    return model


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("together", [1, 4])
def test_a_run_at_guidance_2_3_passes_the_authors_latents(eta, together):
    """Source and target at every level, of a picture of odd shape."""
    expected, x = AUTHORS[str(eta)], noisy(1, 3, 5, 8)
    sigmas = torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path = ddcm.virtual_path(x, sigmas, 5, eta)
    missed = ddcm.missed(prompted((1, 0.3)), path, sigmas, disable=True, together=together)
    seen, target = [], prompted((1 - 2.3, 0.0), (2.3, -0.6))
    found = ddcm.denoise(target, path[0], lambda i, _: path[i], lambda i, _: missed[i], sigmas, disable=True, eta=eta,
                         callback=lambda step: seen.append(step["x"]))
    for i, (source, edited) in enumerate(expected["levels"]):
        scale = (1 + sigmas[i] ** 2).sqrt()
        assert float(path[i].flatten()[7] / scale) == pytest.approx(source, abs=1e-6)
        assert float(seen[i].flatten()[7] / scale) == pytest.approx(edited, abs=1e-6)
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(expected["edit"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert relative(found, x) > 0.1


def test_without_fresh_noise_a_step_is_eulers_of_the_difference():
    """At η = 0 the distance to the source goes along the difference of both velocities."""
    x, sigmas, target = noisy(2, 8), levels(9, False), prompted((1, -0.6))
    path = ddcm.virtual_path(x, sigmas, 3, 0.0)
    missed = ddcm.missed(denoiser(False), path, sigmas, disable=True)
    expected = path[0]
    for i, (n, c) in enumerate(zip(sigmas, sigmas[1:])):
        velocity, own = ((at - m(at, n.expand(2))) / n for m, at in ((target, expected), (denoiser(False), path[i])))
        expected = path[i + 1] + (expected - path[i]) + (c - n) * (velocity - own)
    found = ddcm.denoise(target, path[0], lambda i, _: path[i], lambda i, _: missed[i], sigmas, disable=True, eta=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta, kept", [(1.0, 0.0), (0.36, 0.8), (0.0, 1.0)])
def test_levels_share_what_noise_is_not_fresh(eta, kept):
    sigmas = torch.tensor([14.6, 5.0, 2.0, 0.0])
    path = ddcm.virtual_path(torch.zeros(1, 40000), sigmas, 3, eta)
    noise = [z / s for z, s in zip(path[:-1], sigmas)]
    for n, c in zip(noise, noise[1:]):
        assert float(c.std()) == pytest.approx(1, abs=0.02) and float((n * c).mean()) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_blend_holds_the_source_outside_its_mask(eta):
    model = tiny.sd15(output=0.05)
    latent, left = picture(model), torch.zeros(1, *picture(model)["samples"].shape[-2:])
    left[..., :4] = 1
    inversion = invert("DDCM", model, latent, eta=eta)
    found = replay(attach(model, LocalBlend(inversion, left, 0.0)), inversion, 4.0, prompt=tiny.cond(seed=4))
    assert relative(found[..., 4:], latent["samples"][..., 4:]) < 1e-5
    assert relative(found[..., :4], latent["samples"][..., :4]) > 1e-3


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_step_with_the_x0_that_lands_keeps_to_the_source(eta):
    """Each step adds what the model misses, so that x0 is the picture without it."""
    inversion = invert("DDCM", tiny.sd15(output=0.05), eta=eta)
    for i in range(STEPS):
        landing, step = ddcm.METHOD.landing(inversion, float(inversion.sigmas[i])), inversion.sigmas[i:i + 2]
        found = ddcm.METHOD.reverse(inversion)(lambda x, sigma, x0=landing: x0, inversion.path[i], step, disable=True)
        assert relative(found, inversion.path[i + 1]) < 1e-5
