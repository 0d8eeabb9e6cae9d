"""Watch Your Steps: Local Image and Scene Editing by Text Instructions. Mirzaei, Aumentado-Armstrong, Brubaker, Kelly,
Levinshtein, Derpanis, Gilitschenski, ECCV 2024. arXiv:2308.08947

Where the noise predicted with the instruction is that predicted without it, nothing is to change. The relevance map
    R = Σ over channels of |ε(x_t, target) - ε(x_t, without)|
has its outliers clamped at the third quartile plus 1.5 interquartile ranges and is scaled to 0..1; outside R ≥ τ (0.5)
every step puts the noised picture back.
Differs from the paper, where "without" is InstructPix2Pix's image condition and R is read once, at 0.8 of the noise.
Here it is the source's own prompt, or the null prompt (as in ProxEdit, Han et al. 2024, arXiv:2306.05414, whose masks
follow the steps); R is read on the latent being sampled, at every step from `start` until `end` (once where end =
start); and the picture put back is the inversion's. The x0 predictions stand for ε, of which they are a multiple at one
σ. As the paper's two have one image condition, these have one ControlNet, the target's: else the map would be of what
that does.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.masks import Anchored
from ..editing.predictions import Asked

AGAINST = "source", "null"


def relevance(difference: Tensor) -> Tensor:
    """R [B, h, w] in 0..1 of a difference of predictions [B, C, …, h, w]; 0 where there is none at all."""
    r = difference.float().abs().flatten(1, -3).sum(1)
    low, high = r.flatten(1).quantile(torch.tensor([0.25, 0.75]).to(r), dim=1).view(2, -1, 1, 1)
    r = torch.minimum(r, high + 1.5 * (high - low))
    r = r - r.amin((1, 2), keepdim=True)
    return r / r.amax((1, 2), keepdim=True).clamp(min=torch.finfo(r.dtype).tiny)


@dataclass(frozen=True, eq=False)
class NoiseMask(Anchored):
    """against: "source" or "null", whose prediction the target's is held against; start, end: percents of the schedule
    between which the mask is read anew at each step; threshold: τ."""
    inversion: object
    against: str = "source"
    start: float = 0.2
    end: float = 1.0
    threshold: float = 0.5
    name = "Noise Mask"

    @property
    def prompts(self):
        return (self.inversion.conditioning,) if self.against == "source" else ()

    def begin(self, run):
        if self.against == "null" and "negative" not in run.guider.conds:
            raise ValueError("Noise Mask compares with the null prompt, and this guider has no negative: connect one "
                             "(CFGGuider), or compare with the source.")
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, 1.0))

    def asks(self, run, sigma):
        memory = run.memory(self)
        known = memory.get("sigma") == sigma or "mask" in memory and not run.within(sigma, self.start, self.end)
        if known or not run.within(sigma, self.start, 1.0):
            return {}
        memory["sigma"] = sigma
        return {"other": Asked(run.prompts(self)[0] if self.against == "source" else "null", "target")}

    def answered(self, run, x0, sigma):
        if x0.names:
            run.memory(self)["mask"] = (relevance(x0.target - x0["other"]) >= self.threshold).float()

    def mask(self, run, x, sigma) -> Tensor:
        """The last one read: at the step before where the model is about to see x, at this one where it has."""
        found = run.memory(self).get("mask")
        return x.new_ones(1, *x.shape[-2:]) if found is None else found
