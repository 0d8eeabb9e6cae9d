"""DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance. Couairon, Verbeek, Schwenk, Cord, ICLR 2023.
arXiv:2210.11427

Step 1 of its section 3.2, the mask. The picture is noised to the strength r. Where the noise predicted for the query Q
is not that predicted for the reference text R, the edit is to happen:
    M = mean over n noises and over channels of |ε(x_r, Q) - ε(x_r, R)|.
Extremes are removed, M is scaled to 0..1 and binarised. The authors' settings are n = 10, r = 0.5 and the threshold
0.5. At one σ every model's ε is (x - x0)/σ, or as near a multiple of x0, and scaling M takes the factor out again. So M
is read from the host's x0, on eps, v and flow models alike. The guidance scale drops out in the same way. A video's
frames share one map.

Differs from the paper: extremes are clamped at 3 times the mean of M, as diffusers' pipeline has it. So what passes is
over 1.5 times the mean, which at most two thirds of a picture can be. An edit of the whole picture gives an even map,
which the rule "auto" tells by its spread: there all but the least values pass. Differs from that pipeline: each
picture's map has its own mean, and r is a share of the whole schedule, not of some steps of it (there 0.5 of 50 steps
is timestep 481 of 1000, here 499.5).
Checked against: diffusers 0.42.1, maps and masks.
"""
import torch
from torch import Tensor

from ..editing.predictions import controlled_as
from ..host.guiders import Guider, calc_cond_batch
from ..host.progress import ProgressBar
from ..host.sampling import Solver

RULES = "paper", "auto"
EVEN, FEW = 0.17, 0.6  # chosen on public scenes of the miniature (bench/differences.py)
ROWS = 8  # latents of one forward, which has both prompts for each


class Difference(Guider):
    """Predicts x0(target) - x0(source), both under the target's ControlNets: they differ by their words alone."""

    def predict_noise(self, x, timestep, model_options, seed=None):
        asked = self.conds["target"]
        known = controlled_as(self.conds["source"], asked, float(timestep[0]))
        target, source = calc_cond_batch(self.inner_model, [asked, known], x, timestep, model_options)
        return target - source


def difference_map(model, source, target, latent: Tensor, maps=10, strength=0.5, seed=0) -> Tensor:
    """M [B, h, w] of pictures in model space [B, C, …, h, w], before it is scaled.

    maps: n.
    strength: r, as a share of the schedule from its clean end, over 0 and up to 1.
    """
    sampling = model.get_model_object("model_sampling")
    # at 0 % the host gives a level that is higher than all
    sigma = torch.tensor(min(float(sampling.percent_to_sigma(1 - strength)), float(sampling.sigma_max)))
    noise = torch.randn(maps, *latent.shape, generator=torch.Generator().manual_seed(seed))
    total = torch.zeros(len(latent), *latent.shape[-2:])
    bar = ProgressBar(maps)

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        for part in noise.split(max(1, ROWS // len(x))):
            noised = sampling.noise_scaling(sigma.to(x), part.to(x), x).flatten(0, 1)
            found = denoise(noised, sigma.to(x).expand(len(noised)), **extra_args).float().abs()  # |ε(Q) - ε(R)|
            total.add_(found.unflatten(0, part.shape[:2]).flatten(2, -3).mean(2).sum(0).cpu())
            bar.update(len(part))
        return x

    guider = Difference(model, {"target": target, "source": source})
    sigmas = torch.stack([sigma, torch.zeros(())])
    guider.sample(torch.zeros_like(latent), latent, Solver(solver), sigmas, disable_pbar=True, seed=seed)
    return total / maps


def scaled(difference: Tensor, clamp=3.0) -> Tensor:
    """M [B, h, w] in 0..1: clamped at `clamp` times each map's mean, which is 1 then."""
    return (difference / (clamp * difference.mean((1, 2), keepdim=True))).clamp(max=1)


def spread(difference: Tensor) -> Tensor:
    """[B]: the 10 % quantile of each map over its 90 % quantile, 1 for an even map."""
    low, high = difference.flatten(1).quantile(difference.new_tensor([0.1, 0.9]), dim=1)
    return low / high


def mask(difference: Tensor, threshold=0.5, clamp=3.0, rule="paper") -> Tensor:
    """[B, h, w] in {0, 1} of M. With the rule "auto" an even map passes over FEW of its median."""
    found = scaled(difference, clamp) > threshold
    if rule == "auto":
        even = difference > FEW * difference.flatten(1).median(1).values[:, None, None]
        found = torch.where((spread(difference) > EVEN)[:, None, None], even, found)
    return found.float()
