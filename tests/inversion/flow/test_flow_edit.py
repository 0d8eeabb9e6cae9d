"""FlowEdit against the authors' loop, and its return on flow models."""
import json
from pathlib import Path

import pytest
import torch
from palimpsest.editing.inverting import invert
from palimpsest.inversion.ddcm import missed
from palimpsest.inversion.flow import flow_edit

import tiny
from closed_form import denoiser, levels, network, noisy
from exact_inversions import NEGATIVE, picture, replay
from node_execution import executor  # noqa: F401
from runs import relative

AUTHORS = json.loads((Path(__file__).parents[2] / "data" / "flow_edit.json").read_text())


def prompted(prompt):
    """A flow model whose velocity is the closed-form network's under a prompt."""
    return lambda z, sigma: z - sigma.view(-1, 1, 1, 1) * network(z + prompt, sigma.view(-1, 1, 1, 1))


def guided(cfg, prompt):
    """A flow model whose velocity is the closed-form network's, guided by CFG from no prompt to a prompt."""
    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        return x - s * (network(x, s) + cfg * (network(x + prompt, s) - network(x, s)))
    return model


def test_a_run_at_the_papers_guidance_passes_the_authors_latents():
    """Source and target at every level, of a picture of odd shape."""
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path, seen = flow_edit.noised_path(x, sigmas, 5, flow=True), []
    gaps = missed(guided(3.5, 0.3), path, sigmas, disable=True)
    found = flow_edit.denoise(guided(13.5, -0.6), path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas,
                              callback=lambda step: seen.append(step["x"]), disable=True)
    for i, (source, edited) in enumerate(AUTHORS["levels"]):
        assert float(path[i].flatten()[7]) == pytest.approx(source, abs=1e-6)
        assert float(seen[i].flatten()[7]) == pytest.approx(edited, abs=1e-6)
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(AUTHORS["edit"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert relative(found, x) > 0.1


def test_a_run_with_the_source_as_the_negative_is_flow_aligns():
    """Its latents are those of the authors' loop: guidance from the source's prompt, and 0.01 of the way back."""
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path = flow_edit.noised_path(x, sigmas, 5, flow=True)
    gaps = missed(prompted(0.3), path, sigmas, disable=True)

    def target(z, sigma):
        return prompted(0.3)(z, sigma) + 13.5 * (prompted(-0.6)(z, sigma) - prompted(0.3)(z, sigma))

    found = [flow_edit.denoise(target, path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas, disable=True,
                               align=align) for align in (0.01, 0.0)]
    torch.testing.assert_close(found[0].flatten()[:8], torch.tensor(AUTHORS["aligned"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert relative(found[1], found[0]) > 1e-3


@pytest.mark.parametrize("frames", [1, 3])
def test_latents_of_videos_are_moved_too(frames):
    """[B,C,T,h,w]: the source's prompt returns them, also drawn to the source, and another prompt moves every frame."""
    model = tiny.qwen(output=0.05)
    latent = {"samples": tiny.latent(model).repeat(1, 1, frames, 1, 1) * torch.linspace(1, 0.5, frames).view(-1, 1, 1)}
    inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, align=0.01).inversion
    assert relative(replay(model, inversion), latent["samples"]) < 1e-5
    moved = replay(model, inversion, prompt=tiny.cond(seed=4)) - latent["samples"]
    assert moved.shape == latent["samples"].shape and float(moved.abs().amax((0, 1, 3, 4)).min()) > 1e-5


def test_an_eps_models_edit_goes_along_the_difference_of_both_velocities():
    x, sigmas = noisy(2, 8), levels(9, False)
    path = flow_edit.noised_path(x, sigmas, 3)
    gaps = missed(denoiser(False), path, sigmas, disable=True)

    def target(x, sigma):
        return denoiser(False)(x + 0.3, sigma)

    edit = torch.zeros_like(x)
    for z, n, c in zip(path, sigmas, sigmas[1:]):
        velocities = [(at - m(at, n.expand(2))) / n for m, at in ((target, z + edit), (denoiser(False), z))]
        edit = edit + (c - n) * (velocities[0] - velocities[1])
    found = flow_edit.denoise(target, path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas, disable=True)
    torch.testing.assert_close(found, x + edit, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [*tiny.FLOWS, "sd15"])
def test_the_source_prompt_at_its_guidance_returns_the_picture(family):
    model = {**tiny.FLOWS, **tiny.UNETS}[family](output=0.05)
    latent = picture(model, batch=2)
    inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, cfg=3.0, negative=tiny.cond(seed=NEGATIVE)).inversion
    assert relative(replay(model, inversion, 3.0), latent["samples"]) < 1e-5
    assert relative(replay(model, inversion, 3.0, prompt=tiny.cond(seed=4)), latent["samples"]) > 1e-4
