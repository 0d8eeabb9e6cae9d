"""Watch Your Steps: Local Image and Scene Editing by Text Instructions. Mirzaei, Aumentado-Armstrong, Brubaker, Kelly,
Levinshtein, Derpanis, Gilitschenski, ECCV 2024. arXiv:2308.08947

Where the noise predicted with the instruction is that predicted without it, nothing is to change. The relevance map
    R = Σ over channels of |ε(x_t, target) - ε(x_t, without)|
has its outliers clamped at the third quartile plus 1.5 interquartile ranges and is scaled to 0..1. Outside R ≥ τ (0.5)
every step puts the noised picture back. The x0 predictions stand for ε, or for a flow model's velocity, of which their
difference is a multiple at one σ. The frames of a video share one mask.

Differs from the paper: its "without" is InstructPix2Pix's image condition, and R is read once, at 0.8 of the noise.
Here "without" is the source's own prompt, or the null prompt (as in ProxEdit, Han et al. 2024, arXiv:2306.05414, whose
masks follow the steps). R is read on the latent being sampled, at every step from `start` until `end`, or once where
end = start. The picture put back is the inversion's. Both predictions are under the target's ControlNet, as the paper's
two share an image condition; else the map would show what the ControlNet does. Predictions that differ by rounding
alone have no relevance.
Checked against: the paper's equations.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.masks import Anchored
from ..editing.predictions import Asked
from ..inversion.trajectory import Inversion

AGAINST = "source", "null"
ROUNDED = 5e-6  # of a prediction's largest number; a processor may round the rows of one forward differently


def relevance(target: Tensor, other: Tensor) -> Tensor:
    """R [B, h, w] in 0..1 of predictions [B, C, …, h, w]; 0 where they differ nowhere but by rounding."""
    difference = target - other
    differs, largest = (x.flatten(1).abs().amax(1)[:, None, None] for x in (difference, target))
    r = difference.float().abs().flatten(1, -3).sum(1)  # R
    low, high = r.flatten(1).quantile(torch.tensor([0.25, 0.75]).to(r), dim=1).view(2, -1, 1, 1)
    r = torch.minimum(r, high + 1.5 * (high - low))
    r = r - r.amin((1, 2), keepdim=True)
    return (differs > ROUNDED * largest) * r / r.amax((1, 2), keepdim=True).clamp(min=torch.finfo(r.dtype).tiny)


@dataclass(frozen=True, eq=False)
class NoiseMask(Anchored):
    """Holds the source outside the mask that it finds.

    against: "source" or "null", the prompt whose prediction the target's is compared with.
    start: the percent of the schedule from which the mask is read and holds.
    end: the percent until which it is read anew at each step.
    threshold: τ.
    """
    inversion: Inversion
    against: str = "source"
    start: float = 0.2
    end: float = 1.0
    threshold: float = 0.5
    name = "Noise Mask"

    @dataclass
    class State:
        """sigma: the level at which the mask was read last.
        mask: [B, h, w], None before the first.
        """
        sigma: float | None = None
        mask: Tensor | None = None

    @property
    def prompts(self):
        return (self.inversion.conditioning,) if self.against == "source" else ()

    def begin(self, run):
        if self.against == "null" and "negative" not in run.guider.conds:
            raise ValueError("Noise Mask compares with the null prompt, and this guider has no negative: connect one "
                             "(CFGGuider), or compare with the source.")
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, 1.0))

    def hands_on(self, run, sigma):
        return "the mask" if run.within(sigma, self.start, 1.0) else ""

    def asks(self, run, sigma):
        state = run.state(self)
        known = state.sigma == sigma or state.mask is not None and not run.within(sigma, self.start, self.end)
        if known or not run.within(sigma, self.start, 1.0):
            return {}
        state.sigma = sigma
        return {"other": Asked(run.prompts(self)[0] if self.against == "source" else "null", "target")}

    def answered(self, run, x0, sigma):
        if x0.names:
            run.state(self).mask = (relevance(x0.target, x0["other"]) >= self.threshold).float()

    def mask(self, run, x, sigma) -> Tensor:
        """The last one read: before the model sees x the step before's, after it this step's."""
        found = run.state(self).mask
        return x.new_ones(1, *x.shape[-2:]) if found is None else found
