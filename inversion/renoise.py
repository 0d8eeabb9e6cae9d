"""ReNoise: Real Image Inversion Through Iterative Noising. Garibi, Patashnik, Voynov, Averbuch-Elor, Cohen-Or, ECCV
2024. arXiv:2403.14602

A sampler's step, z_{t-1} = φ·z_t + ψ·ε(z_t, t) + ρ·ε_t, is turned around: z_t = (z_{t-1} - ψ·ε(z_t, t) - ρ·ε_t)/φ. The
unknown z_t inside ε is first z_{t-1}, then K times the estimate just found ("renoising"), and the last direction is the
average of the network's last predictions. In x and σ a step of Euler (ancestral) reads
    x_c = x_n + (σ_down - σ_n)·ε(x_n, σ_n) + σ_up·ε_t,
with σ_down = σ_c and σ_up = 0 where it is deterministic. The first guess is the sampler's own latent: DDIM's z, so that
x is rescaled, and Euler ancestral's x as it is.
Noise correction (samplers that add noise): once x_n is found, ε_t becomes the one noise with which the step gives x_c
exactly; it is kept, and the reverse adds it. The step to σ = 0 adds none, so its own error stays.
Differs from the paper: the editability losses on the predicted noise are left out. Differs from the authors' code,
which leads the drawn noise towards the one of noise correction by a few steps of fixed length and so stops short of it.

Checked against: the paper's equations; garibida/ReNoise-Inversion@fa83238 for its settings alone (defaults, averages,
first guesses), since it has no licence.
"""
import torch
from torch import Tensor
from tqdm.auto import trange

from .grid import first_step, recorded, recorded_theta, report_step, scale
from .method import SEED, Found, Kept, Method, Setting

EARLY = 1 - 250 / 999  # percent of the schedule: t < 250
NO_FLOW = ("ReNoise's noise correction at eta {eta:g} is known for eps and v models, this MODEL is a flow model: set "
           "eta to 0.")


def ancestral_step(noisy: Tensor, clean: Tensor, eta: float):
    """(σ_down, σ_up) of a step from σ `noisy` to `clean`: DDIM's variance at η, so that σ_down² + σ_up² = σ_clean²."""
    if eta == 0:
        return clean, torch.zeros_like(clean)
    up = eta * (clean ** 2 * (noisy ** 2 - clean ** 2) / noisy ** 2).sqrt()
    return (clean ** 2 - up ** 2).clamp(min=0).sqrt(), up


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, flow=False, data=1.0,
           iterations=9, average=2, early_iterations=5, early=0.0, eta=0.0, seed=0) -> tuple[list, dict]:
    """Follow the reverse process from the clean latent x [B,C,…] to σ[0], with `iterations` renoisings a step and the
    mean of the last `average` predictions; at levels under σ `early`, with the mean of the first `early_iterations`.

    model(x, sigma [B], **extra_args) returns x0; sigmas [S+1] descend to 0; callback gets k-diffusion's dict at every
    model call. eta > 0 inverts Euler ancestral, with noise drawn from the seed and then corrected; not on flow models.
    Returns S+1 latents in the order of sigmas, and {"noise": Theta [S,B,C,…]} where eta > 0.
    """
    if flow and eta > 0:
        raise ValueError(NO_FLOW.format(eta=eta))
    extra_args = extra_args or {}
    generator = torch.Generator().manual_seed(seed)
    path, noises = [x], []
    rows = x.new_ones(x.shape[0])
    levels = sigmas.flip(0)
    for i in trange(len(levels) - 1, disable=disable):
        clean, noisy = levels[i], levels[i + 1]

        def eps(z):
            denoised = model(z, noisy * rows, **extra_args)
            report_step(callback, i, z, noisy, denoised)
            return (z - denoised) / noisy

        down, up = ancestral_step(noisy, clean, eta)
        noise = torch.randn(x.shape, generator=generator).to(x) if up > 0 else torch.zeros_like(x)
        z = x if eta > 0 else x * scale(clean, noisy, flow, data)
        predictions, count, kept = [], iterations + 1, average
        if noisy < early:
            count = kept = max(1, early_iterations)
        for _ in range(count):
            predictions = [*predictions, eps(z)][-kept:]
            z = x + (noisy - down) * predictions[-1] - up * noise  # renoising
        z = x + (noisy - down) * torch.stack(predictions).mean(0) - up * noise
        if up > 0:
            noise = (x - z - (down - noisy) * eps(z)) / up  # noise correction
        x = z
        path.append(x)
        noises.append(noise)
    theta = {"noise": recorded_theta(noises[::-1])} if eta > 0 else {}
    return path[::-1], theta


def reverse(inversion):
    """Euler ancestral of k-diffusion's signature, with the inversion's corrected noise in place of drawn noise."""
    eta = inversion.settings["eta"]

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        rows = x.new_ones(x.shape[0])
        first = first_step(inversion, sigmas)
        for i in trange(len(sigmas) - 1, disable=disable):
            noisy = sigmas[i]
            denoised = model(x, noisy * rows, **(extra_args or {}))
            report_step(callback, i, x, noisy, denoised)
            down, up = ancestral_step(noisy, sigmas[i + 1], eta)
            x = x + (down - noisy) * (x - denoised) / noisy + up * recorded(inversion, "noise", first + i, x)
        return x
    return sample


def inverted(*args, **kwargs) -> Found:
    return Found(*invert(*args, **kwargs))


def check(*, iterations, average, **_):
    if average > iterations + 1:
        raise ValueError(f"ReNoise averages the last {average} predictions, {iterations} iterations make "
                         f"{iterations + 1}: lower average, or raise iterations.")


SETTINGS = {"iterations": Setting(9, 0, 100), "average": Setting(2, 1, 100), "early_iterations": Setting(5, 0, 100)}
DETERMINISTIC = Method("ReNoise", "ReNoise Invert", inverted, steps=4, scheduler="simple", settings=SETTINGS,
                       percents={"early": EARLY}, check=check)
ANCESTRAL = Method("ReNoise Ancestral", "ReNoise Invert", inverted, steps=4, scheduler="simple",
                   settings=SETTINGS | {"eta": Setting(1.0, 0.0, 1.0, needed=True), "seed": SEED},
                   percents={"early": EARLY}, no_flow=NO_FLOW, check=check, theta={"noise": Kept("step", "step")},
                   trajectory="independent", reverse=reverse)
METHODS = DETERMINISTIC, ANCESTRAL
