"""Effective Real Image Editing with Accelerated Iterative Diffusion Inversion (AIDI). Pan, Gherardi, Xie, Huang, ICCV
2023. arXiv:2309.04907

A DDIM step from the noisier x_n gives x_c = x_n + (σ_c - σ_n)·ε(x_n, σ_n), so the x_n that belongs to a known x_c is a
fixed point of
    f(x) = x_c + (σ_n - σ_c)·ε(x, σ_n).
DDIM inversion is one iteration of f from a guess. Where f contracts, iterating it (AIDI_F) leads to the latent that the
sampler takes back exactly; Anderson acceleration (AIDI_A) mixes the last m + 1 images f(x) by the weights, of sum 1,
that make the mixed residual f(x) - x least.
Differs from the paper: the weights are solved for each picture of a batch. A picture rests once its residual is under
the tolerance. There is no blended guidance, the source is inverted at guidance 1.

Checked against: the paper's equations.
"""
import logging

import torch
from torch import Tensor
from tqdm.auto import trange

from .grid import append_dims, report_step, scale
from .method import Found, Method, Setting

MEMORY = 2  # m: how many earlier iterations Anderson acceleration mixes in
ACCELERATIONS = {"none": 0, "anderson": MEMORY}
log = logging.getLogger("palimpsest")


def anderson(residuals: list, images: list) -> Tensor:
    """The next iterate [B,C,…] from the last residuals f(x) - x and images f(x), oldest first, in the differences' form
    f(x_k) - Σ γ_j·(f(x_j+1) - f(x_j)) with γ the least squares solution of Σ γ_j·(r_j+1 - r_j) = r_k."""
    if len(images) == 1:
        return images[-1]
    r, g = (torch.stack(t).flatten(2) for t in (residuals, images))  # (m + 1, B, N)
    dr, dg = r.diff(dim=0), g.diff(dim=0)
    gram = torch.einsum("ibn,jbn->bij", dr, dr).cpu().double()
    side = torch.einsum("ibn,bn->bi", dr, r[-1]).cpu().double()
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(torch.float64).tiny
    gamma = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(len(dr), dtype=gram.dtype), side)
    return (g[-1] - torch.einsum("bi,ibn->bn", gamma.to(g), dg)).view_as(images[-1])


def iterate(f, x: Tensor, iterations: int, tolerance: float, memory: int):
    """(x, errors): at most `iterations` of x <- f(x) from a guess x [B,C,…].

    errors: at each iteration the pictures' largest residual ‖f(x) - x‖, as a share of the guess's norm.
    A picture whose residual is at most `tolerance` takes f(x) and stops there.
    """
    residuals, images, errors = [], [], []
    scale = x.flatten(1).norm(dim=1)
    resting = x.new_zeros(x.shape[0], dtype=torch.bool)
    for _ in range(iterations):
        image = f(x)
        residual = image - x
        residuals, images = [*residuals, residual][-memory - 1:], [*images, image][-memory - 1:]
        error = residual.flatten(1).norm(dim=1) / scale
        errors.append(float(error[~resting].max()))
        arrived = error <= tolerance
        following = torch.where(append_dims(arrived, x), image, anderson(residuals, images))
        x = torch.where(append_dims(resting, x), x, following)
        resting = resting | arrived
        if resting.all():
            break
    return x, errors


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, flow=False, data=1.0,
           iterations=5, tolerance=1e-5, memory=0) -> tuple[list, list]:
    """Follow the reverse process from the clean latent x [B,C,…] to σ[0], solving each step by fixed-point iteration.

    model(x, sigma [B], **extra_args) returns x0; sigmas [S+1] descend to 0; callback gets k-diffusion's dict at every
    model call. memory: 0 for plain iteration, m for Anderson acceleration.
    Returns S+1 latents in the order of sigmas, the clean one last, and the number of iterations of each step, in the
    same order.
    """
    extra_args = extra_args or {}
    path, used = [x], []
    rows = x.new_ones(x.shape[0])
    levels = sigmas.flip(0)
    for i in trange(len(levels) - 1, disable=disable):
        clean, noisy, start = levels[i], levels[i + 1], x

        def f(x):
            denoised = model(x, noisy * rows, **extra_args)
            report_step(callback, i, x, noisy, denoised)
            return start + (noisy - clean) * ((x - denoised) / noisy)  # f(x)

        guess = x * scale(clean, noisy, flow, data)
        x, errors = iterate(f, guess, iterations, tolerance, memory)
        if errors[-1] > errors[0]:
            log.warning("The fixed-point iteration does not contract at sigma %.4g: in %d iterations its residual grew "
                        "from %.2g to %.2g. Take more steps or fewer iterations (1 is DDIM "
                        "inversion).", noisy, len(errors), errors[0], errors[-1])
        path.append(x)
        used.append(len(errors))
    return path[::-1], used[::-1]


def inverted(*args, acceleration, **kwargs) -> Found:
    latents, used = invert(*args, memory=ACCELERATIONS[acceleration], **kwargs)
    return Found(latents, notes={"iterations": used})


METHOD = Method("Fixed Point", "Fixed-Point Invert", inverted, steps=20, settings={
    "iterations": Setting(5, 1, 100), "tolerance": Setting(1e-5, 0.0, 1.0),
    "acceleration": Setting("anderson", choices=tuple(ACCELERATIONS))})
