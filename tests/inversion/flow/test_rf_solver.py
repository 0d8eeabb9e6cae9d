"""RF-Solver and FireFlow against the authors' loops, on a flow of closed form, and on flow models."""
import json
from pathlib import Path

import comfy.k_diffusion.sampling
import pytest
import torch
from palimpsest.editing.inverting import invert
from palimpsest.editing.replay import replay as replayed
from palimpsest.host.sampling import Solver
from palimpsest.inversion import ddim
from palimpsest.inversion.flow import fireflow, rf_solver
from palimpsest.inversion.method import methods
from palimpsest.nodes.inversion.report import path_errors

import tiny
from closed_form import denoiser, network, noisy
from contracting import family, lost, picture
from node_execution import executor  # noqa: F401
from runs import relative

DATA = Path(__file__).parents[2] / "data"
SOLVERS = {"RF-Solver": rf_solver.METHOD, "FireFlow": fireflow.METHOD}
euler = comfy.k_diffusion.sampling.sample_euler


def there(method, model, x, sigmas):
    return method.invert(model, x, sigmas, None, None, True).latents


def back(method, model, x, sigmas):
    return method.reverse(None)(model, x, sigmas, disable=True)


@pytest.mark.parametrize("name, file", [("RF-Solver", "rf_solver"), ("FireFlow", "fireflow")])
def test_both_ways_give_the_authors_numbers(name, file):
    """The way back under another prompt; the authors ask at exactly 0."""
    numbers, method = json.loads((DATA / f"{file}.json").read_text()), SOLVERS[name]
    sigmas = torch.tensor(numbers["sigmas"], dtype=torch.float64)

    def prompted(x, sigma):
        return x - sigma.view(-1, 1, 1, 1) * network(x + 0.3, sigma.view(-1, 1, 1, 1))

    noise = there(method, denoiser(True), noisy(1, 1, 8, 8), sigmas)[0]
    edit = back(method, prompted, noise, sigmas)
    for found, expected in (noise, numbers["noise"]), (edit, numbers["edit"]):
        torch.testing.assert_close(found.flatten()[:8], torch.tensor(expected, dtype=torch.float64), rtol=4e-10,
                                   atol=4e-10)


@pytest.mark.parametrize("name, expected", [("RF-Solver", 3.68e-6), ("FireFlow", 8.55e-6)])
def test_the_round_trip_of_25_steps_is_a_hundred_times_nearer_than_eulers(name, expected):
    model, x, sigmas = denoiser(True), noisy(3, 8), torch.linspace(1, 0, 26, dtype=torch.float64)
    plain = relative(euler(model, ddim.invert(model, x, sigmas, disable=True, flow=True)[0], sigmas, disable=True), x)
    method = SOLVERS[name]
    own = relative(back(method, model, there(method, model, x, sigmas)[0], sigmas), x)
    assert own < plain / 100
    assert own == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name, asked", [
    ("RF-Solver", [1e-6, 0.25, 0.5, 0.75]), ("FireFlow", [1e-6, 0.25, 0.75])])
def test_each_evaluation_is_at_a_level_that_the_inversion_holds(name, asked):
    seen, x = [], torch.ones(2, 4, 1, 3, 3)  # five dimensions, as Qwen-Image's

    def model(x, sigma, **extra):
        seen.append((x.dtype, sigma.tolist(), extra))
        return torch.zeros_like(x)

    sigmas, method = torch.tensor([1.0, 0.5, 0.0]), SOLVERS[name]
    found = method.invert(model, x, sigmas, {"seed": 7}, None, True).latents
    assert seen == [(torch.float64, pytest.approx([s, s]), {"seed": 7}) for s in asked]
    assert len(found) == 5 and torch.equal(found[-1], x)
    assert method.levels(sigmas).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("name", tiny.FLOWS)
@pytest.mark.parametrize("method, evaluations", [("RF-Solver", 12), ("FireFlow", 7)])
def test_on_flow_models_replays_own_steps_return_the_picture(method, evaluations, name):
    model = family(name)
    plain, own = (invert(m, model, tiny.cond(), picture(model), 6, "simple").inversion for m in ("DDIM", method))
    assert lost(model, own) < lost(model, plain)
    assert own.provenance["evaluations"] == evaluations
    start = replayed(model, own)
    assert len(own.sigmas) == 13 and torch.equal(start.sigmas, own.sigmas[::2])
    assert start.sigmas.tolist() == plain.sigmas.tolist() and " 6 simple steps" in f" {own.schedule}"


def test_what_replay_walks_back_along_is_told_level_by_level():
    """Each latent of a replay is compared with the one that the inversion passed there, not with a middle."""
    model = family("flux")
    inversion = invert("FireFlow", model, tiny.cond(), picture(model), 6, "simple").inversion
    errors = path_errors(inversion.path[::2], inversion)
    assert errors.shape == (7, 1) and float(errors.max()) == 0


def test_another_sampler_may_take_its_place():
    model, plain = family("flux"), Solver()
    inversion = invert("FireFlow", model, tiny.cond(), picture(model), 6, "simple").inversion
    assert replayed(model, inversion, sampler=plain).sampler is not replayed(model, inversion).sampler
    assert replayed(model, inversion, sampler=plain).sampler.function is euler
    assert methods()["FireFlow"].reverse
