"""ReNoise inversion: averaged predictions, the authors' levels, and noise correction for ancestral steps."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from palimpsest.inversion import fixed_point, renoise
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.renoise import PalimpsestReNoiseInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from contracting import MIX, curved, family, invert, levels, lost, picture, start
from node_execution import executor  # noqa: F401
from runs import relative


def test_renoising_averages_the_last_predictions_and_all_of_them_at_early_levels():
    x, sigmas = start(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    settings = {"iterations": 4, "average": 2, "early_iterations": 2, "early": 0.6}
    path, theta = renoise.invert(curved, x, sigmas, disable=True, flow=True, **settings)

    def predictions(x, noisy, step, count):
        found, z = [], x
        for _ in range(count):
            found.append(torch.tanh(z @ MIX))  # ε of `curved`
            z = x + step * found[-1]
        return found

    first = x + 0.5 * sum(predictions(x, 0.5, 0.5, 2)) / 2
    second = first + 0.5 * sum(predictions(first, 1.0, 0.5, 5)[3:]) / 2
    torch.testing.assert_close(path, [second, first, x], rtol=1e-12, atol=1e-12)
    assert not theta


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_guess_of_a_step_is_the_samplers_own_latent(eta):
    """DDIM's z = x/√(1+σ²), unchanged. For Euler ancestral it is x that is unchanged."""
    seen, sigmas = [], torch.tensor([4.0, 1.5, 0.0], dtype=torch.float64)

    def watched(x, sigma):
        seen.append((x, float(sigma[0])))
        return curved(x, sigma)

    path, _ = renoise.invert(watched, start(), sigmas, disable=True, iterations=3, eta=eta)
    for clean, (noisy, c) in enumerate([(1.5, 0.0), (4.0, 1.5)]):
        scale = 1.0 if eta else ((1 + noisy ** 2) / (1 + c ** 2)) ** 0.5
        guess = next(x for x, sigma in seen if sigma == noisy)
        torch.testing.assert_close(guess, path[-1 - clean] * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheduler, timesteps", [(None, [999, 749, 499, 249]),
                                                  ("sgm_uniform", [999, 749.25, 499.5, 249.75]),
                                                  ("ddim_uniform", [751, 501, 251, 1])])
def test_the_defaults_take_turbos_levels_and_one_of_four_is_early_on_any_schedule(scheduler, timesteps):
    """The authors' 4 steps of SDXL Turbo: three of 1 + 9 predictions, and one below timestep 250 whose 5
    predictions are averaged."""
    model = family("sdxl")
    own = {i.id: i.default for i in PalimpsestReNoiseInvert.define_schema().inputs
           if getattr(i, "default", None) is not None}
    own |= {"scheduler": scheduler} if scheduler else {}
    inversion = PalimpsestReNoiseInvert.execute(model, tiny.cond(), picture(model), **own).result[0]
    sampling = model.get_model_object("model_sampling")
    expected = [float(sampling.sigma(torch.tensor(float(t)))) for t in timesteps]
    assert inversion.sigmas[:-1].tolist() == pytest.approx(expected, rel=1e-5)
    assert inversion.provenance["evaluations"] == 3 * 10 + 5


def test_renoising_with_the_last_prediction_alone_is_fixed_point_iteration():
    x, sigmas = start(), levels(6, 1.0)
    found = renoise.invert(curved, x, sigmas, disable=True, iterations=4, average=1)[0]
    expected = fixed_point.invert(curved, x, sigmas, disable=True, iterations=5, tolerance=0.0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*tiny.UNETS, *tiny.FLOWS])
def test_renoise_returns_nearer_than_ddim_inversion(name):
    model = family(name)
    inversion = invert(PalimpsestReNoiseInvert, model, 3, 2, 4, 0.0, 0)
    assert lost(model, inversion) < lost(model, invert(PalimpsestDDIMInvert, model)) / 4
    assert inversion.provenance["evaluations"] == 4 * inversion.provenance["steps"] and not inversion.theta


@pytest.mark.parametrize("name", tiny.UNETS)
def test_noise_correction_makes_ancestral_steps_exact(name):
    """All steps except the last, which adds no noise. Even a poor estimate from few renoisings is undone exactly."""
    model, settings = family(name, 0.2), (1, 1, 1, 1.0)
    inversion = invert(PalimpsestReNoiseInvert, model, *settings, 7, batch=2)
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    short = SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas[:-1], latent)
    assert relative(model.model.process_latent_in(short.result[0]["samples"]), inversion.latents[-2]) < 1e-4
    noise = inversion.theta["noise"].tensor
    assert noise.shape[:2] == (inversion.provenance["steps"], 2) and not noise[-1].any() and noise[:-1].std() > 0.5
    other = invert(PalimpsestReNoiseInvert, model, *settings, 8, batch=2)
    assert relative(other.latents[0], inversion.latents[0]) > 1e-2
    again = invert(PalimpsestReNoiseInvert, model, *settings, 7, batch=2)
    assert all(map(torch.equal, again.latents, inversion.latents))


def test_ancestral_renoise_is_replayed_by_its_own_sampler_and_on_its_own_levels_only():
    model = family("sd15")
    inversion = invert(PalimpsestReNoiseInvert, model, 1, 1, 1, 0.5, 0)
    with pytest.raises(ValueError, match="ReNoise Ancestral recorded noise.*leave the sampler input empty"):
        PalimpsestReplay.execute(model, inversion, 0.0, KSamplerSelect.execute("euler").result[0])
    assert not inversion.covers(float(inversion.sigmas[:2].mean()))
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    four = {"samples": latent["samples"].repeat(4, 1, 1, 1)}
    rows = SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas, four).result[0]["samples"]
    torch.testing.assert_close(rows[3:], rows[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="each step for itself: sample with Replay's SIGMAS"):
        SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas[::2], latent)
    with pytest.raises(ValueError, match="eta 0.5.*flow model.*eta to 0"):
        invert(PalimpsestReNoiseInvert, family("sd3"), 1, 1, 1, 0.5, 0)
    with pytest.raises(ValueError, match="last 3 predictions, 1 iterations make 2"):
        invert(PalimpsestReNoiseInvert, model, 1, 3, 1, 0.0, 0)
