"""Uni-Inv against the paper's equation, the authors' schedulers, DDIM inversion's round trip, and on flow models."""
import json
from pathlib import Path

import comfy.k_diffusion.sampling
import pytest
import torch
from palimpsest.inversion import ddim
from palimpsest.inversion.flow import uni_inv
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.flow.uni_inv import PalimpsestUniInvert

import tiny
from closed_form import denoiser, levels, network, noisy
from contracting import family, invert, lost
from node_execution import executor  # noqa: F401
from runs import relative

AUTHORS = json.loads((Path(__file__).parents[2] / "data" / "uni_inv.json").read_text())
euler = comfy.k_diffusion.sampling.sample_euler


def test_every_level_is_the_papers():
    """On a flow model, whose velocity the closed-form network is; the first guess is the picture."""
    x, sigmas = noisy(3, 8), levels(7, True)
    path, z, v = [x], x, 0
    for clean, noise in zip(sigmas.flip(0), sigmas.flip(0)[1:]):
        v = network(z + (noise - clean) * v, noise)
        z = z + (noise - clean) * v
        path.append(z)
    found = uni_inv.invert(denoiser(True), x, sigmas, disable=True, flow=True)
    assert relative(z, x) > 0.3
    torch.testing.assert_close(found, path[::-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flow, expected", [(True, "noise"), (False, "z")])
def test_reaches_the_latents_of_the_authors_schedulers(flow, expected):
    numbers = AUTHORS["flow" if flow else "ddim"]
    sigmas = torch.tensor([*numbers["sigmas"], 0.0], dtype=torch.float64)
    found = uni_inv.invert(denoiser(flow), noisy(1, 1, 8, 8), sigmas, disable=True, flow=flow)[0]
    z = found if flow else found / (1 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(z.flatten()[:8], torch.tensor(numbers[expected], dtype=torch.float64),
                               rtol=1e-6, atol=1e-6)


def test_the_round_trip_of_25_steps_is_nearer_than_ddim_inversions():
    """On a smooth flow ODE of closed form, with as many evaluations."""
    model, x, sigmas = denoiser(True), noisy(3, 8), levels(25, True)
    errors = [relative(euler(model, solver.invert(model, x, sigmas, disable=True, flow=True)[0], sigmas, disable=True),
                       x) for solver in (uni_inv, ddim)]
    assert errors == pytest.approx([2.24e-3, 2.51e-2], rel=0.01)


def test_one_call_a_step_at_the_noisier_level_with_every_row_and_argument():
    seen, told = [], []

    def model(x, sigma, **extra):
        seen.append((tuple(x.shape), sigma.tolist(), extra))
        return torch.zeros_like(x)

    x = torch.ones(2, 4, 1, 3, 3)  # five dimensions, as Qwen-Image's
    before = x.clone()
    path = uni_inv.invert(model, x, torch.tensor([1.0, 0.5, 0.0]), {"seed": 7}, told.append, True, flow=True)
    assert seen == [((2, 4, 1, 3, 3), [0.5, 0.5], {"seed": 7}), ((2, 4, 1, 3, 3), [1.0, 1.0], {"seed": 7})]
    assert [(t["i"], float(t["sigma"])) for t in told] == [(0, 0.5), (1, 1.0)]
    assert path[-1] is x and torch.equal(x, before) and len(path) == 3


@pytest.mark.parametrize("name", tiny.FLOWS)
def test_on_flow_models_replay_comes_nearer_than_from_ddim_invert(name):
    model = family(name)
    inversion, plain = (invert(node, model, steps=15, batch=2) for node in (PalimpsestUniInvert, PalimpsestDDIMInvert))
    assert lost(model, inversion) < lost(model, plain) / 2
    assert inversion.provenance["evaluations"] == plain.provenance["evaluations"] == 2 * (len(inversion.sigmas) - 1)


@pytest.mark.parametrize("name", tiny.UNETS)
def test_on_eps_and_v_models_replay_returns_too(name):
    model = family(name, 0.02)
    inversion = invert(PalimpsestUniInvert, model, steps=15)
    assert lost(model, inversion) < 0.03
    assert inversion.provenance["evaluations"] == len(inversion.sigmas) - 1
