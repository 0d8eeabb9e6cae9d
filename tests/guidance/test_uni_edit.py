"""Uni-Edit Guidance against the authors' loop and schedulers, the paper's equations, and on the real host."""
import json
from pathlib import Path

import comfy.k_diffusion.sampling
import pytest
import torch
from node_helpers import conditioning_set_values
from palimpsest.guidance.uni_edit import fused, region
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.guidance.uni_edit import PalimpsestUniEditGuidance
from palimpsest.nodes.inversion.flow.uni_inv import PalimpsestUniInvert

import tiny
from closed_form import network, noisy
from contracting import family, invert, replay
from node_execution import executor  # noqa: F401
from runs import relative

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "uni_edit.json").read_text())
SOURCE, TARGET = 0.3, -0.6
euler = comfy.k_diffusion.sampling.sample_euler


def denoiser(m, flow, omega=5.0):
    """The edit's x0 under the closed-form network, at any σ. m: the mask of v^T - v^S."""
    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        z = x if flow else x / (1 + s ** 2).sqrt()
        source, target = (x - s * network(z + prompt, s) for prompt in (SOURCE, TARGET))
        return fused(source, target, m((source - target) / s), omega)
    return model


def signed(difference):
    """The mask of the authors' schedulers."""
    mean = difference.mean(1, keepdim=True)
    rows = mean.flatten(1)
    low, high = (rows.amin(1), rows.amax(1))
    return (mean - low.view(-1, 1, 1, 1)) / (high - low + 1e-7).view(-1, 1, 1, 1)


def test_a_run_is_that_of_the_authors_flux_loop():
    """Its tokens are places here, and their values channels."""
    numbers = AUTHORS["tokens"]

    def model(x, sigma):
        source, target = (x - sigma.view(-1, 1, 1) * network(x.mT + prompt, sigma.view(-1, 1, 1)).mT
                          for prompt in (SOURCE, TARGET))
        return fused(source, target, region((source - target) / sigma), 5.0)

    found = euler(model, noisy(1, 40, 8).mT, torch.tensor([*numbers["sigmas"], 0.0]).double(), disable=True).mT
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(numbers["edited"]).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["flow", "ddim"])
def test_with_their_masks_runs_are_those_of_the_authors_schedulers(name):
    numbers, flow, z = AUTHORS[name], name == "flow", noisy(2, 3, 5, 8)
    sigmas = torch.tensor([*numbers["sigmas"], 0.0]).double()
    x = z if flow else z * (1 + sigmas[0] ** 2).sqrt()
    found = euler(denoiser(signed, flow), x, sigmas, disable=True)
    torch.testing.assert_close(found.flatten(1)[:, :4].flatten(), torch.tensor(numbers["edited"]).double(),
                               rtol=1e-6, atol=1e-6)
    assert relative(euler(denoiser(region, flow), x, sigmas, disable=True), found) > 1e-2


def test_a_step_is_the_papers_correction_and_fusion():
    """Of latents with frames, each picture by itself."""
    z, source, target = (noisy(2, 3, 2, 5, 8, seed=seed) for seed in (1, 2, 3))
    step, omega = -0.1, 3.0
    m = torch.stack([(size - size.min()) / (size.max() - size.min())
                     for size in (target - source).abs().mean(1)])[:, None]
    corrected = z + step * omega * (1 + m) * (target - source)
    wanted = corrected + step * (m * target + (1 - m) * source)
    found = z + step * fused(source, target, region(target - source), omega)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


PROMPTS = tiny.cond(seed=4), tiny.cond(), tiny.cond(seed=9)  # target, source, null


def guided(model, source=PROMPTS[1], omega=2.0):
    return PalimpsestUniEditGuidance.execute(model, source, omega).result[0]


def predicted(model, prompt, x, sigma):
    """What the host's network predicts of one prompt."""
    found = []

    def ask(model, x, sigmas, extra_args=None, **_):
        found.append(model(x, sigmas[0] * x.new_ones(len(x)), **extra_args))
        return x

    sample(model, prompt, model.model.process_latent_out(x), torch.stack([sigma, sigma * 0]), Solver(ask))
    return found[0]


@pytest.mark.parametrize("name", [*tiny.FLOWS, "sd2"])
def test_a_run_is_the_papers_loop_on_every_kind_of_model(name):
    """v^S and v^T of each step are the network's at one latent; CFG guides what comes out of them."""
    model, cfg = family(name), 1.5
    inversion = invert(PalimpsestUniInvert, model, steps=3)
    x = inversion.path[0]
    for sigma, following in zip(inversion.sigmas, inversion.sigmas[1:]):
        target, source, null = ((x - predicted(model, prompt, x, sigma)) / sigma for prompt in PROMPTS)
        size = (target - source).abs().mean(1, keepdim=True)
        m = (size - size.min()) / (size.max() - size.min())
        v = m * target + (1 - m) * source + 2.0 * (1 + m) * (target - source)
        x = x + (following - sigma) * (null + cfg * (v - null))
    found = replay(model, inversion, cfg, PROMPTS[2], guided(model), PROMPTS[0])
    assert relative(found, x) < 1e-5
    assert relative(found, replay(model, inversion, cfg, PROMPTS[2], prompt=PROMPTS[0])) > 1e-3


def test_the_source_prompt_itself_leads_back():
    """Whatever omega is."""
    model = family("flux")
    inversion = invert(PalimpsestUniInvert, model)
    assert relative(replay(model, inversion, edited=guided(model, omega=20.0)), replay(model, inversion)) < 1e-6


def test_guidance_that_differs_between_the_prompts_is_told(said):
    model = family("flux")
    inversion, one = invert(PalimpsestUniInvert, model, steps=2), {"guidance": 1.0}
    said()
    source, target = (conditioning_set_values(prompt, one) for prompt in (PROMPTS[1], PROMPTS[0]))
    replay(model, inversion, edited=guided(model, source), prompt=target)
    assert not said()
    replay(model, inversion, edited=guided(model), prompt=target)
    assert "source: None, target: 1.0" in " ".join(said())


def test_a_second_one_and_a_prompt_with_an_area_are_refused():
    model = family("flux")
    with pytest.raises(ValueError, match="carries Uni-Edit Guidance already.*use one of the two"):
        guided(guided(model))
    with pytest.raises(ValueError, match="carries 'area'.*remove"):
        guided(model, conditioning_set_values(PROMPTS[1], {"area": (4, 4, 0, 0)}))
