"""x0 and EDM prediction as the host's model sampling nodes set them. x = x0 + σ·ε, so they are
inverted like eps models."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from palimpsest.host.sampling import fingerprint, prediction_type
from palimpsest.inversion import bdia, ddim, edict, fixed_point, renoise
from palimpsest.nodes.inversion.bdia import PalimpsestBDIAInvert
from palimpsest.nodes.inversion.cycle_diffusion import PalimpsestCycleDiffusionInvert
from palimpsest.nodes.inversion.ddcm import PalimpsestDDCMInvert
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.direct import PalimpsestDirectInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert
from palimpsest.nodes.inversion.null_text import PalimpsestNullTextOptimize
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import relative

DATA = 0.5
KINDS = {"x0": ("x0", 1.0), "edm": ("edm", DATA), "edm_playground_v2.5": ("edm", DATA)}
each = pytest.mark.parametrize("kind, family", [(k, f) for k in KINDS for f in tiny.UNETS])


@pytest.fixture(autouse=True)
def executor():
    """Runs each test as the host's executor runs nodes."""
    with torch.inference_mode():
        yield


def made(kind, family="sdxl", **kwargs):
    model = tiny.UNETS[family](**kwargs)
    if kind == "x0":
        return ModelSamplingDiscrete().patch(model, "x0", False)[0]
    return ModelSamplingContinuousEDM().patch(model, kind, 80.0, 0.002)[0]


def picture(model):
    """A LATENT whose values have the standard deviation of the model's data, in sampler space."""
    kind, data = model.get_model_object("latent_format"), model.get_model_object("model_sampling").sigma_data
    return {"samples": kind.process_out(tiny.latent(model, std=data))}


def replayed(model, inversion, cfg=1.0):
    """The distance of Replay's end from the picture, in sampler space."""
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    found = SamplerCustom.execute(m, False, 5, cfg, tiny.cond(), tiny.cond(seed=9), solver, sigmas,
                                  latent).result[0]["samples"]
    return relative(model.get_model_object("latent_format").process_in(found), inversion.latents[-1])


@each
def test_are_told_apart(kind, family):
    model = made(kind, family)
    found = fingerprint(model)
    assert (prediction_type(model), found.sigma_data) == KINDS[kind] == (found.prediction, found.sigma_data)
    assert (found.latent_format == "SDXL_Playground_2_5") == (kind == "edm_playground_v2.5")


@pytest.mark.parametrize("kind, family", list(zip(KINDS, tiny.UNETS)))
@pytest.mark.parametrize("node, settings", [
    (PalimpsestEDICTInvert, (0.93, 1.0)), (PalimpsestBDIAInvert, (1.0, 1.0)), (PalimpsestDirectInvert, (1.0, 1.0)),
    (PalimpsestDDPMInvert, (1.0, 3, 1.0)), (PalimpsestCycleDiffusionInvert, (0.1, 3)),
    (PalimpsestDDCMInvert, (1.0, 3)), (PalimpsestLEDITSInvert, (3, 1.0))])
def test_exact_inversions_return_the_picture(kind, family, node, settings):
    """Within float32 rounding. On these networks the noise is 100 to 1000 times the picture."""
    model = made(kind, family)
    inversion = node.execute(model, tiny.cond(), picture(model), 4, "karras", *settings).result[0]
    assert replayed(model, inversion) < 1e-3


@each
def test_each_level_is_eulers_step_with_the_networks_own_prediction(kind, family):
    """Against the definitions of the parametrisations, on the network itself. It sees z = x/√(d² +
    σ²) of the cleaner level."""
    model = made(kind, family)
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), picture(model), 6, "karras").result[0]
    sampling, d = model.get_model_object("model_sampling"), KINDS[kind][1]
    levels = list(zip(inversion.sigmas, inversion.latents))
    y = model.model.encode_adm(**tiny.cond()[0][1], width=64, height=64, device="cpu") if family == "sdxl" else None
    for (n, x_n), (c, x_c) in zip(levels, levels[1:]):
        z = x_c / (d ** 2 + c ** 2).sqrt()
        out = model.model.diffusion_model(z, sampling.timestep(n[None]).float(), context=tiny.cond()[0][0], y=y)
        seen = z * (d ** 2 + n ** 2).sqrt()
        x0 = out if kind == "x0" else seen * d ** 2 / (n ** 2 + d ** 2) + out * n * d / (n ** 2 + d ** 2).sqrt()
        assert relative(x_c + (n - c) * (seen - x0) / n, x_n) < 1e-4


@pytest.mark.parametrize("kind", ["edm", "edm_playground_v2.5"])
def test_the_perfect_denoiser_leads_back_to_the_picture(kind):
    """If the network predicts 0, EDM's denoiser is that of data ~ N(0, σ_data²). With the latent at DDIM's scale, as if
    σ_data were 1, 50 steps end 7 % away."""
    model = made(kind, "sd15", output=0.0)
    inversion, _, sigmas = PalimpsestDDIMInvert.execute(model, tiny.cond(), picture(model), 50, "karras").result
    growth = (DATA ** 2 + sigmas[0] ** 2).sqrt() / DATA
    assert relative(inversion.latents[0], growth * inversion.latents[-1]) < 0.06
    assert replayed(model, inversion) < 0.01


@pytest.mark.parametrize("solve", [
    ddim.invert, lambda *a, **k: fixed_point.invert(*a, **k)[0], lambda *a, **k: renoise.invert(*a, **k)[0],
    lambda *a, **k: [torch.cat(pair) for pair in edict.invert(*a, **k)], lambda *a,
    **k: bdia.invert(*a, gamma=1.0, **k)[0]])
def test_a_change_of_unit_changes_nothing(solve):
    """x = x0 + σ·ε in units of σ_data is the same equation with σ_data = 1."""
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.linspace(3, 0, 9, dtype=torch.float64)

    def model(x, sigma):
        return torch.tanh(x) / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    ours = solve(lambda x, sigma: DATA * model(x / DATA, sigma / DATA), DATA * x, DATA * sigmas, disable=True,
                 data=DATA)
    for a, b in zip(ours, solve(model, x, sigmas, disable=True)):
        torch.testing.assert_close(a, DATA * b)


@pytest.mark.parametrize("kind", KINDS)
def test_null_text_is_replayed_as_it_was_learned(kind):
    """The replay ends as far from the picture as the last optimised step."""
    model = made(kind)
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), picture(model), 2, "karras").result[0]
    learned = PalimpsestNullTextOptimize.execute(model, inversion, 7.5, 2, 0.0, "negative", tiny.cond(seed=9)).result[0]
    losses = learned.provenance["losses"]
    assert all(last < first for first, last, _ in losses)
    reached = (losses[-1][1] / inversion.latents[-1].square().mean()).sqrt()
    assert replayed(model, learned, 7.5) == pytest.approx(float(reached), rel=1e-3)
