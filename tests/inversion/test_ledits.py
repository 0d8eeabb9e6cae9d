"""LEDITS++'s inversion against diffusers' noise maps, and the picture that it returns."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as pipeline_module
from palimpsest.bench import twin
from palimpsest.inversion import ledits
from palimpsest.inversion.grid import independent_path
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from dpm_solver import STEPS, invert, scheduler
from node_execution import executor  # noqa: F401
from runs import relative


def network(z, sigma):
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4
    return torch.tanh(z @ mix + torch.cos(3 * sigma))


def denoiser(x, sigma):
    sigma = sigma[:, None]
    return x - sigma * network(twin.z_of(x, sigma), sigma)


def path_of(x, sigmas):
    return ledits.noise_maps(denoiser, independent_path(x, sigmas, 3), sigmas, disable=True)


def test_reads_the_noise_maps_of_diffusers_but_for_the_last():
    theirs, x = scheduler(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = theirs.sigmas.double()
    path, maps, _ = path_of(x, sigmas)
    z = [twin.z_of(p, s) for p, s in zip(path, sigmas)]
    for i, t in enumerate(theirs.timesteps):
        noise, _ = pipeline_module.compute_noise(theirs, z[i + 1], z[i], t, network(z[i], sigmas[i]), 1.0)
        if i < STEPS - 1:
            assert relative(maps[i], noise) < 1e-5, i
    assert not noise.any() and maps[-1].norm() > 0.01 * x.norm()  # diffusers drops the error of the last step


@pytest.mark.parametrize("together", [1, 4])
def test_the_path_is_walked_again_from_every_level(together):
    x, sigmas = torch.randn(2, 16, generator=torch.Generator().manual_seed(1),
                            dtype=torch.float64), scheduler().sigmas.double()
    path, maps, denoised = ledits.noise_maps(denoiser, independent_path(x, sigmas, 3), sigmas, disable=True,
                                             together=together)
    assert relative(maps[5], path_of(x, sigmas)[1][5]) < 1e-9
    for first in (0, 4, STEPS - 1):
        found, before = path[first], denoised[first - 1] if first else None
        for i in range(first, STEPS):
            D = denoiser(found, sigmas[i].expand(2))
            mean, scale = ledits.mean_scale(found, ledits.towards(D, before, sigmas, i), sigmas[i], sigmas[i + 1])
            found, before = mean + scale * maps[i], D
        assert relative(found, x) < 1e-9


@pytest.mark.parametrize("family, cfg, start", [("sd15", 1.0, 0.0), ("sd15", 3.5, 0.4), ("sd2", 1.0, 0.15),
                                                ("sdxl", 1.0, 0.5)])
def test_replay_returns_the_picture(family, cfg, start):
    model = tiny.UNETS[family](output=0.05)
    latent, negative = tiny.latent(model, 2), tiny.cond(seed=2)
    inversion = invert(model, latent, tiny.cond(), cfg=cfg, negative=negative)
    m, solver, sigmas, noise = PalimpsestReplay.execute(model, inversion, start).result
    noise = {"samples": noise["samples"].repeat(2, 1, 1, 1)}
    found, other = (SamplerCustom.execute(m, False, 0, cfg, prompt, negative, solver, sigmas,
                                          noise).result[0]["samples"]
                    for prompt in (tiny.cond(), tiny.cond(seed=5)))
    assert relative(found, latent.repeat(2, 1, 1, 1)) < 1e-5 and relative(noise["samples"], found) > 0.1
    assert relative(other, found) > 1e-3


def test_flow_models_are_refused():
    model = tiny.sd3()
    with pytest.raises(ValueError, match="LEDITS.. Invert.*SD3 MODEL predicts by flow"):
        invert(model, tiny.latent(model), tiny.cond())
