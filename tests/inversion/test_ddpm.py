"""Edit-friendly DDPM against the authors' code and diffusers' scheduler."""
import pytest
import torch
from diffusers import DDIMScheduler
from palimpsest.inversion import ddpm
from palimpsest.inversion.grid import independent_path, with_last_residual

from closed_form import AUTHORS, authors, denoiser, network, noisy
from exact_inversions import STEPS
from node_execution import executor  # noqa: F401
from runs import relative


def test_ddpm_reads_the_noise_maps_of_the_authors_code_but_for_the_last_which_they_drop():
    x, sigmas = authors()
    draws = noisy(STEPS, 1, 8, 8, seed=2).flip(0)
    path = [*(x + s * e for s, e in zip(sigmas, draws)), x]
    maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True, eta=1.0)[1]
    expected = torch.tensor(AUTHORS["ddpm"]["z"], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([z.flatten()[:4] for z in maps[:-1]]), expected[:-1], rtol=1e-9, atol=1e-9)
    assert not expected[-1].any() and maps[-1].norm() > 0.01 * x.norm()


def test_few_steps_return_and_edit_as_in_the_authors_code_unless_the_last_residual_is_kept():
    """The authors' last map is zero. If it is kept, it returns the picture, and an edit shows what the
    map holds of the source."""
    x, few = noisy(1, 1, 8, 8), AUTHORS["ddpm_few"]
    sigmas = torch.tensor([*few["sigmas"], 0.0], dtype=torch.float64)
    path = [*(x + s * e for s, e in zip(sigmas, noisy(4, 1, 8, 8, seed=2).flip(0))), x]
    path, maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True)

    def mirrored(x, sigma):
        s = sigma.view(-1, 1, 1, 1)
        return x - s * network((x / (1 + s ** 2).sqrt()).flip(-1), s)

    def sampled(model, choice):
        chosen = with_last_residual(maps, sigmas, choice)
        return ddpm.denoise(model, path[0], lambda i, _: chosen[i], sigmas, disable=True)

    for choice in ("auto", "zero"):
        for model, name in ((denoiser(False), "back"), (mirrored, "edited")):
            expected = torch.tensor(few[name], dtype=torch.float64)
            torch.testing.assert_close(sampled(model, choice).flatten()[:8], expected, rtol=1e-9, atol=1e-9)
    assert relative(sampled(denoiser(False), "keep"), x) < 1e-10 and relative(sampled(denoiser(False), "zero"), x) > 0.1
    torch.testing.assert_close(sampled(mirrored, "keep") - sampled(mirrored, "zero"), maps[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.1])
def test_the_noise_maps_drive_diffusers_scheduler_along_the_path(eta):
    """DDIMScheduler adds eta·σ_t·z itself. With our maps it must take every level to the next."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    alpha = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = torch.cat([((1 - alpha) / alpha).sqrt(), torch.zeros(1, dtype=torch.float64)])
    path = independent_path(noisy(3, 8), sigmas, seed=4)
    path, maps = ddpm.noise_maps(denoiser(False), path, sigmas, disable=True, eta=eta)
    z = [x / (1 + s ** 2).sqrt() for x, s in zip(path, sigmas)]
    for i, t in enumerate(scheduler.timesteps[:-1]):
        found = scheduler.step(network(z[i], sigmas[i]), t, z[i], eta=eta, variance_noise=maps[i]).prev_sample
        assert relative(found, z[i + 1]) < 1e-6, i
