"""Fixed-point inversion against closed forms, against DDIM inversion and on the miniature."""
import comfy.k_diffusion.sampling
import pytest
import torch
from palimpsest.inversion import ddim, fixed_point, renoise
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.fixed_point import PalimpsestFixedPointInvert

import tiny
from contracting import curved, family, invert, levels, lost, replay, start
from node_execution import executor  # noqa: F401
from runs import relative

euler = comfy.k_diffusion.sampling.sample_euler


def gaussian(x, sigma):
    """The exact denoiser of N(0, 1): ε = x·σ/(1+σ²). An Euler step is a product, and its inverse a quotient."""
    return x / (1 + sigma.view(-1, 1) ** 2)


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
    """The weights are the least squares solution: with m differences, an affine map of m
    dimensions is solved exactly."""
    mix = torch.tensor([[0.5, 0.3], [-0.2, 0.4]], dtype=torch.float64)
    x, errors = fixed_point.iterate(lambda x: x @ mix + 1, torch.zeros(3, 2, dtype=torch.float64), 4, 0.0, 2)
    exact = torch.linalg.solve((torch.eye(2) - mix).mT, torch.ones(2, dtype=torch.float64))
    assert relative(x, exact.expand(3, 2)) < 1e-6 and errors[1] > 1e-2


@pytest.mark.parametrize("memory", [0, 2])
def test_a_picture_is_inverted_as_it_would_be_alone_and_rests_when_it_has_arrived(memory):
    settings = {"disable": True, "iterations": 40, "tolerance": 1e-6, "memory": memory}
    pair = torch.cat([start(1), 0.01 * start(1).flip(1)])  # the second is nearly linear and converges at another time
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
    """A trained model on a picture that it can draw: 15 times on this scene."""
    model, clip, vae = load_miniature()
    edit = held_out_edit(3, "colour")
    source = clip.encode_from_tokens_scheduled(clip.tokenize(edit.source_text))
    latent = {"samples": vae.encode(torch.from_numpy(edit.source_image)[None])}
    plain, fixed = (node.execute(model, source, latent, 10, "ddim_uniform", *settings).result[0] for node, settings in (
        (PalimpsestDDIMInvert, ()), (PalimpsestFixedPointInvert, (3, 1e-5, "anderson"))))
    errors = [relative(replay(model, i, prompt=source, negative=source), i.latents[-1]) for i in (plain, fixed)]
    assert errors[1] < errors[0] / 10, errors
