"""Blended Latent Diffusion. Avrahami, Fried, Lischinski, SIGGRAPH 2023. arXiv:2206.02779

Its progressive mask shrinking. A mask that is thin in the latent leaves the early, noisy steps too little room to make
anything of the prompt, and what they make is lost when the background is blended back. So the mask begins grown and
shrinks to itself as the steps go. At each step, with z_bg the picture at that step's noise,
    z <- m_t · z + (1 - m_t) · z_bg.
z_bg is the inversion's latent, which is exact. Without an inversion the host's own noise mask blends, with the picture
noised anew, and only the shrinking is added to it.

Differs from the paper: the authors grow by squares of 7², 5², 3² and 1 cells in turn. Here it is by `grow` cells in all
directions, one less at a time, in equal shares of the schedule until `end` (3 and 0.75 are the authors'). Their
optimisation of the decoder is left out: pixels outside the mask come back by compositing.
Checked against: the paper's equations.
"""
from dataclasses import dataclass

from torch import Tensor

from ..editing.checks import require_rows
from ..editing.masks import Anchored, grown
from ..inversion.trajectory import Inversion


@dataclass(frozen=True, eq=False)
class ShrinkingBlend(Anchored):
    """Holds the source outside a mask that shrinks.

    masks: [masks, h, w] for every radius from 0 on.
    end: the percent of the schedule from which the first of them holds.
    """
    inversion: Inversion
    masks: tuple
    end: float = 0.75
    start, name = 0.0, "Blended Latent"

    def begin(self, run):
        require_rows(run, len(self.masks[0]), self.name)

    def mask(self, run, x, sigma) -> Tensor:
        return self.masks[sum(not run.within(sigma, percent, 1.0) for percent in ends(len(self.masks) - 1, self.end))]


def ends(radius: int, end: float) -> list:
    """The percents of the schedule from which a mask grown by `radius` cells has shrunk by one, two, … of them."""
    return [end * (i + 1) / radius for i in range(radius)]


def needs_mask(executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, *args, **kwargs):
    """The host's wrapper of a sampler's run: without a noise mask there is nothing to shrink."""
    if denoise_mask is None:
        raise ValueError("Blended Latent shrinks the noise mask of the LATENT being sampled, and it has none: set one "
                         "with Set Latent Noise Mask, or connect an INVERSION and a MASK to the node.")
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def shrinking(radius: int, end: float, inner=None):
    """The host's denoise_mask_function: the sampler's own noise mask [B, C, …, h, w], grown and shrinking.

    inner: the function that stands there already, which sees the grown mask.
    """
    def function(sigma, denoise_mask, extra_options):
        sampling = extra_options["model"].inner_model.model_sampling
        cells = sum(float(sigma[0]) > float(sampling.percent_to_sigma(percent)) for percent in ends(radius, end))
        mask = grown(denoise_mask, cells) if cells else denoise_mask
        return inner(sigma, mask, extra_options=extra_options) if inner else mask
    return function
