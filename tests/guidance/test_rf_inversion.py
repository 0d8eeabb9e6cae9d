"""RF-Inversion Guide against diffusers' controlled step, its trends, and on flow models."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.inverting import invert
from palimpsest.editing.replay import replay
from palimpsest.guidance.rf_inversion import DrawnToPicture
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.guidance.rf_inversion import PalimpsestRFInversionGuide

import tiny
from contracting import family, picture
from node_execution import executor  # noqa: F401
from runs import Case, percent, relative

NUMBERS = json.loads((Path(__file__).parents[1] / "data" / "rf_inversion.json").read_text())
TARGET = tiny.cond(seed=4)


def sampled(model, inversion, *guide):
    start = replay(model, inversion)
    edited = PalimpsestRFInversionGuide.execute(start.model, inversion, *guide).result[0] if guide else start.model
    return SamplerCustom.execute(edited, False, 0, 1.0, TARGET, TARGET, start.sampler, start.sigmas,
                                 start.latent).result[0]["samples"]


def velocity(model, x, sigma):
    """What the host's network predicts of the target's prompt."""
    found = []

    def ask(model, x, sigmas, extra_args=None, **_):
        found.append((x - model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)) / sigmas[0])
        return x

    sample(model, TARGET, model.model.process_latent_out(x), torch.tensor([sigma, 0.0]), Solver(ask))
    return found[0]


@pytest.mark.parametrize("name", tiny.FLOWS)
def test_a_run_on_flow_models_is_diffusers_controlled_loop(name):
    """Its v_t = -prediction, v_t_cond = (y_0 - latents)/(1 - t_i), 3 of 5 steps guided by 0.9."""
    model = family(name)
    inversion = invert("RF-Inversion", model, tiny.cond(), picture(model), 5, sigmas=torch.linspace(1, 0, 6)).inversion
    latents, y_0 = inversion.path[0], inversion.path[-1]
    for i, (s, following) in enumerate(zip(inversion.sigmas.tolist(), inversion.sigmas.tolist()[1:])):
        v_t = -velocity(model, latents, s)
        if i < 3:
            v_t = v_t + 0.9 * ((y_0 - latents) / s - v_t)
        latents = latents + v_t * (s - following)
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    share = next(p / 100 for p in range(100) if percent_to_sigma(p / 100) < inversion.sigmas[2:4].mean())
    found = model.model.process_latent_in(sampled(model, inversion, 0.9, 0.0, share, "constant"))
    assert relative(found, latents) < 1e-5
    assert relative(found, model.model.process_latent_in(sampled(model, inversion))) > 1e-3


def test_eta_1_to_the_end_gives_the_picture():
    model = family("flux")
    inversion = invert("RF-Inversion", model, tiny.cond(), picture(model), 4).inversion
    assert relative(sampled(model, inversion, 1.0, 0.0, 1.0, "constant"), picture(model)["samples"]) < 1e-5


@pytest.mark.parametrize("trend, theirs", [
    ("constant", "constant"), ("rising", "linear_increase"), ("falling", "linear_decrease")])
def test_trends_are_those_of_another_implementation(trend, theirs):
    sigmas = torch.tensor(NUMBERS["sigmas"])
    run = SimpleNamespace(sigmas=sigmas, within=lambda s, start, end: float(sigmas[1]) >= s >= float(sigmas[5]))
    guide = DrawnToPicture(None, 0.9, 0.1, 0.7, trend)
    found = [guide.eta * guide._share(run, s) if run.within(s, 0, 0) else 0 for s in sigmas[:-1].tolist()]
    assert found == pytest.approx(NUMBERS["eta"][theirs], abs=1e-6)


def test_a_span_that_holds_nothing_is_refused():
    model = family("flux")
    inversion = invert("RF-Inversion", model, tiny.cond(), picture(model), 2).inversion
    with pytest.raises(ValueError, match="runs from 0.5 to 0.2 of the schedule.*set its end above"):
        PalimpsestRFInversionGuide.execute(model, inversion, 0.9, 0.5, 0.2, "constant")


@pytest.mark.parametrize("trend", ["constant", "falling", "rising"])
def test_a_trend_that_holds_nothing_is_said(trend, said):
    """Rising begins at 0, and there is one step."""
    case = Case("flux", steps=4)
    end = sum(percent(case.model, float(sigma)) for sigma in case.sigmas[:2]) / 2
    guide = PalimpsestRFInversionGuide.execute(case.model, case.inversion, 0.9, 0.0, end, trend).result[0]
    plain, idle = case.sample(cfg=1.0), trend == "rising"
    said()
    assert torch.equal(case.sample(guide, cfg=1.0), plain) == idle
    assert any("RF-Inversion Guide" in text for text in said()) == idle
