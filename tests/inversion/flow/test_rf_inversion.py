"""RF-Inversion's way to the noise against the authors' algorithm and another implementation, and on flow models."""
import json
from pathlib import Path

import pytest
import torch
from palimpsest.editing.inverting import invert
from palimpsest.inversion import ddim
from palimpsest.inversion.flow import rf_inversion

import tiny
from closed_form import denoiser, levels, noisy
from contracting import family, picture
from node_execution import executor  # noqa: F401
from runs import relative

NUMBERS = json.loads((Path(__file__).parents[2] / "data" / "rf_inversion.json").read_text())


def test_the_noise_is_that_of_another_implementation_of_algorithm_1():
    x, sigmas = noisy(1, 1, 8, 8).float(), torch.tensor(NUMBERS["sigmas"], dtype=torch.float64)
    found = rf_inversion.invert(denoiser(True), x, sigmas, disable=True, gamma=0.5, seed=5, flow=True)
    torch.testing.assert_close(found[0].flatten()[:8], torch.tensor(NUMBERS["noise"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert torch.equal(found[-1], x.double())


@pytest.mark.parametrize("flow", [True, False])
def test_it_lies_between_eulers_inversion_and_the_picture_noised(flow):
    x, sigmas = noisy(3, 8), levels(7, flow)
    ends = [rf_inversion.invert(denoiser(flow), x, sigmas, disable=True, gamma=gamma, seed=2, flow=flow)
            for gamma in (0.0, 1.0)]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    for s, y in zip(sigmas, ends[1]):
        torch.testing.assert_close(y, (1 - s) * x + s * noise if flow else x + s * noise, rtol=1e-9, atol=1e-9)
    z, grid = x, sigmas.flip(0)
    for clean, noisier in zip(grid, grid[1:]):
        at = clean.clamp(min=1e-6).expand(3)
        z = z + (noisier - clean) * (z - denoiser(flow)(z, at)) / at[0]
    torch.testing.assert_close(ends[0][0], z, rtol=1e-9, atol=1e-9)


def test_it_is_nearer_to_the_priors_noise_the_higher_gamma_is():
    x, sigmas = noisy(3, 8), levels(7, True)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    ends = [rf_inversion.invert(denoiser(True), x, sigmas, disable=True, gamma=gamma, seed=2, flow=True)[0]
            for gamma in (0.0, 0.5, 0.9)]
    apart = [relative(end, noise) for end in ends]
    assert apart == sorted(apart, reverse=True) and apart[2] < apart[0] / 4
    assert relative(ddim.invert(denoiser(True), x, sigmas, disable=True, flow=True)[0], noise) > apart[1]


@pytest.mark.parametrize("name", [*tiny.FLOWS, "sd15"])
def test_on_the_host_a_seed_gives_its_noise_at_one_evaluation_a_step(name):
    model = family(name)
    one, same, other = (invert("RF-Inversion", model, tiny.cond(), picture(model, 2), 4, seed=seed).inversion
                        for seed in (1, 1, 2))
    assert torch.equal(one.path[0], same.path[0]) and relative(one.path[0], other.path[0]) > 0.1
    assert one.provenance["evaluations"] == 2 * 4
