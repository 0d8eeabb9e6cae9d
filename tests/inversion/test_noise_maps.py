"""Methods that draw their levels and record what each step takes: DDPM, CycleDiffusion, LEDITS++ and DDCM."""
import pytest
import torch
from palimpsest.inversion import cycle_diffusion, ddpm
from palimpsest.inversion.grid import independent_path
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert

import tiny
from closed_form import denoiser, levels, noisy
from exact_inversions import STEPS, invert, picture, replay
from node_execution import executor  # noqa: F401
from runs import relative

KEPT = {"DDPM": "z", "CycleDiffusion": "z", "DDCM": "missed"}
drawn = pytest.mark.parametrize("name", KEPT)


@pytest.mark.parametrize("node", [PalimpsestDDPMInvert, PalimpsestLEDITSInvert])
@pytest.mark.parametrize("scheduler, kept", [("sgm_uniform", False), ("simple", False), ("ddim_uniform", True)])
def test_the_last_residual_stays_where_the_last_level_is_clean_or_where_asked(node, scheduler, kept):
    """Of 10 steps, the last begins at sigma 0.35 or 0.04. If its map is kept, it returns the picture."""
    model = tiny.sd15(output=0.05)
    latent = picture(model)
    seeded = {"seed": 0} if node is PalimpsestLEDITSInvert else {"eta": 1.0, "seed": 0}

    def made(**chosen):
        return node.execute(model, tiny.cond(), latent, STEPS, scheduler, **seeded, cfg=1.0, **chosen).result[0]

    auto, keep, zero = made(), made(last_residual="keep"), made(last_residual="zero")
    assert (auto.sigmas[-2] < 0.1) == kept
    z = [i.theta["z"].tensor for i in (auto, keep, zero)]
    assert torch.equal(z[0], z[1] if kept else z[2]) and torch.equal(z[1][:-1], z[2][:-1])
    assert z[1][-1].any() and not z[2][-1].any()
    assert relative(replay(model, keep), latent["samples"]) < 1e-5 < relative(replay(model, zero), latent["samples"])


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_path_of_noise_maps_is_walked_again(eta, together):
    sigmas, x = levels(STEPS, False), noisy(2, 1, 3, 8)
    for start in (independent_path(x, sigmas, 3), cycle_diffusion.posterior_path(x, sigmas, 3, eta)):
        path, maps = ddpm.noise_maps(denoiser(False), start, sigmas, disable=True, eta=eta, together=together)
        for first in (0, 4):
            found = ddpm.denoise(denoiser(False), path[first], lambda i, _: maps[first + i], sigmas[first:],
                                 disable=True, eta=eta)
            assert relative(found, x) < 1e-10


@drawn
def test_stochastic_methods_refuse_flow_models(name):
    with pytest.raises(ValueError, match=f"{name} Invert.*SD3 MODEL predicts by flow.*DDIM Invert"):
        invert(name, tiny.sd3())


@drawn
def test_levels_share_a_forward_only_where_nothing_reads_one_sigma_for_the_batch(name):
    model = tiny.sd15()
    rows = []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda apply, args: rows.append(len(args["input"])) or apply(
        args["input"], args["timestep"], **args["c"]))
    latent, source = picture(model, batch=2), tiny.cond(batch=2)
    alone, shared = (invert(name, m, latent, source=source) for m in (watched, model))
    assert rows == [2] * STEPS
    assert alone.provenance["evaluations"] == shared.provenance["evaluations"] == 2 * STEPS
    assert relative(alone.theta[KEPT[name]].tensor, shared.theta[KEPT[name]].tensor) < 1e-5


@drawn
def test_the_seed_alone_draws_the_levels(name):
    model = tiny.sd15()
    torch.manual_seed(0)
    first = invert(name, model, seed=7)
    torch.manual_seed(1)
    again, other = invert(name, model, seed=7), invert(name, model, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.latents, again.latents))
    assert torch.equal(first.theta[KEPT[name]].tensor, again.theta[KEPT[name]].tensor)
    assert not torch.equal(first.latents[0], other.latents[0])
    assert first.trajectory == "independent" and not first.covers(float(first.sigmas[:2].mean()))
