"""DDIM inversion against diffusers' scheduler, closed forms, and its own reverse."""
import comfy.k_diffusion.sampling
import pytest
import torch
from diffusers import DDIMInverseScheduler
from palimpsest.host.sampling import Solver, sample, schedule
from palimpsest.inversion import ddim

import tiny
from runs import relative

euler = comfy.k_diffusion.sampling.sample_euler
STEPS = 50


def scheduler(prediction="epsilon"):
    made = DDIMInverseScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                                prediction_type=prediction, timestep_spacing="leading", set_alpha_to_one=True,
                                clip_sample=False)
    made.set_timesteps(STEPS)
    return made


def diffusers_path(scheduler, network, z):
    """z at every level, the clean one first."""
    path = [z]
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z).prev_sample
        path.append(z)
    return path


def host_path(model, latent, conditioning, sigmas):
    """Our inversion through the host's guider, in sampler space, the clean latent first."""
    path = []

    def solve(*args, **kwargs):
        path[:] = ddim.invert(*args, **kwargs)
        return path[0]

    sample(model, conditioning, latent, sigmas, Solver(solve))
    return path[::-1]


@torch.inference_mode()
def both_paths(make, prediction):
    """(ours, diffusers', network, schedule): z of both over the levels, with the host's network."""
    model = make()
    latent, conditioning = tiny.latent(model, batch=2), tiny.cond()
    sigmas = schedule(model, "ddim_uniform", STEPS)
    ours = [x / (1 + s ** 2).sqrt() for x, s in zip(host_path(model, latent, conditioning, sigmas), sigmas.flip(0))]

    def network(z, t):
        context = conditioning[0][0].expand(len(z), -1, -1)
        return model.model.diffusion_model(z, t.float().expand(len(z)), context=context)

    theirs = diffusers_path(scheduler(prediction), network, model.model.process_latent_in(latent))
    return ours, theirs, network, sigmas.flip(0)


def test_equals_diffusers_at_every_level_on_the_hosts_own_network():
    ours, theirs, _, sigmas = both_paths(tiny.sd15, "epsilon")
    assert len(ours) == len(theirs) == STEPS + 1
    assert relative(theirs[-1], theirs[0]) > 0.1  # the network matters: without it z would not move
    distances = [relative(a, b) for a, b in zip(ours, theirs)]
    assert max(distances) < 1e-4, distances


def test_equals_diffusers_in_double_precision():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator, dtype=torch.float64) / 4
    x0 = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    theirs = scheduler()
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    alphas = theirs.alphas_cumprod[theirs.timesteps]
    sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), ((1 - alphas) / alphas).sqrt()]).flip(0)

    def network(z, t):
        return torch.tanh(z @ mix + torch.cos(t / 100))

    def model(x, sigma):
        z = x / (1 + sigma[:, None] ** 2).sqrt()
        level = (sigmas[:-1] - sigma[0]).abs().argmin()
        return x - sigma[:, None] * network(z, theirs.timesteps.flip(0)[level])

    ours = ddim.invert(model, x0, sigmas, disable=True)[::-1]
    for x, sigma, z in zip(ours, sigmas.flip(0), diffusers_path(theirs, network, x0)):
        assert relative(x / (1 + sigma ** 2).sqrt(), z) < 1e-9


def test_on_v_prediction_diffusers_converts_at_the_cleaner_level_and_the_host_at_the_noisier():
    """One network call v at z_c, with a = √ᾱ, b = √(1-ᾱ), gives diffusers ε = a_c·v + b_c·z_c, and us a_n·v + b_n·z_c.

    Both then take the DDIM step z_n = (a_n/a_c)·z_c + (b_n - a_n·b_c/a_c)·ε. From one z_c they therefore differ by
    exactly (b_n - a_n·b_c/a_c)·((a_n - a_c)·v + (b_n - b_c)·z_c). Over 50 levels of this network that adds up to 5 %.
    """
    ours, theirs, network, sigmas = both_paths(tiny.sd2, "v_prediction")
    reference = scheduler("v_prediction")
    a, b = 1 / (1 + sigmas ** 2).sqrt(), sigmas / (1 + sigmas ** 2).sqrt()
    with torch.inference_mode():
        for c, t in enumerate(reference.timesteps):
            z, v, n = ours[c], network(ours[c], t), c + 1
            gap = (b[n] - a[n] * b[c] / a[c]) * ((a[n] - a[c]) * v + (b[n] - b[c]) * z)
            step = reference.step(v, t, z).prev_sample
            assert relative(step + gap, ours[n]) < 1e-5
            assert gap.norm() > 1e-4 * z.norm()
    assert relative(ours[-1], theirs[-1]) == pytest.approx(0.051, abs=0.005)


def gaussian(x, sigma):
    """The exact denoiser of data ~ N(0, 1), x = x0 + σ·ε. The ODE's solution is x(σ) = x(0)·√(1+σ²)."""
    return x / (1 + sigma.view(-1, 1) ** 2)


def gaussian_flow(x, sigma):
    """The same data on a flow model, x = (1-σ)·x0 + σ·ε: x(σ) = x(0)·√((1-σ)²+σ²)."""
    sigma = sigma.view(-1, 1)
    return x * (1 - sigma) / ((1 - sigma) ** 2 + sigma ** 2)


def levels(steps, top):
    return (torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2 * top)


@pytest.mark.parametrize("model, flow, top, growth", [
    (gaussian, False, 14.6, (1 + 14.6 ** 2) ** 0.5), (gaussian_flow, True, 1.0, 1.0)])
def test_follows_the_exact_trajectory_to_first_order(model, flow, top, growth):
    x = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = [relative(ddim.invert(model, x, levels(n, top), disable=True, flow=flow)[0], growth * x)
             for n in (200, 400)]
    assert error[0] < 0.02
    assert error[0] / error[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("model, flow, top", [(gaussian, False, 14.6), (gaussian_flow, True, 1.0)])
def test_euler_takes_full_noise_back_to_the_picture(model, flow, top):
    x = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = ddim.invert(model, x, levels(STEPS, top), disable=True, flow=flow)
    assert all(z.isfinite().all() for z in path)
    back = euler(model, path[0], levels(STEPS, top), disable=True)
    error = relative(back, x)
    finer = relative(euler(model, ddim.invert(model, x, levels(4 * STEPS, top), disable=True, flow=flow)[0],
                           levels(4 * STEPS, top), disable=True), x)
    assert error < 0.05 and finer < 0.3 * error


@pytest.mark.parametrize("flow", [False, True])
def test_each_level_solves_the_fixed_point_of_its_euler_step_where_eps_ignores_x(flow):
    """x_n = x_c + (σ_n - σ_c)·ε(x_n, σ_n). If ε depends on σ alone, the first iteration
    solves it and Euler undoes it."""
    direction = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(x, sigma):
        return x - sigma.view(-1, 1) * direction * torch.cos(sigma.view(-1, 1))

    x, sigmas = torch.ones(2, 8, dtype=torch.float64), levels(20, 1.0)
    path = ddim.invert(model, x, sigmas, disable=True, flow=flow)
    assert relative(path[0], x) > 0.1
    torch.testing.assert_close(euler(model, path[0], sigmas, disable=True), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("flow, scale", [(False, 5 ** 0.5), (True, 1.0)])
def test_the_network_sees_the_cleaner_latent_scaled_to_the_noisier_level(flow, scale):
    seen = []

    def model(x, sigma):
        seen.append(x)
        return x

    x = torch.ones(1, 4)
    ddim.invert(model, x, torch.tensor([2.0, 0.0]), disable=True, flow=flow)
    torch.testing.assert_close(seen, [x * scale])


def test_one_call_a_step_at_the_noisier_level_with_every_row_and_argument():
    seen, told = [], []

    def model(x, sigma, **extra):
        seen.append((tuple(x.shape), sigma.tolist(), extra))
        return torch.zeros_like(x)

    x = torch.ones(2, 4, 1, 3, 3)  # five dimensions, as Qwen-Image's
    before = x.clone()
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    path = ddim.invert(model, x, sigmas, extra_args={"seed": 7}, callback=told.append, disable=True)
    assert seen == [((2, 4, 1, 3, 3), [1.0, 1.0], {"seed": 7}), ((2, 4, 1, 3, 3), [2.0, 2.0], {"seed": 7})]
    assert [(t["i"], float(t["sigma"])) for t in told] == [(0, 1.0), (1, 2.0)]
    assert path[-1] is x and torch.equal(x, before) and len(path) == 3
