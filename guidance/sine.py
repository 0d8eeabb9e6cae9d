"""SINE: SINgle Image Editing with Text-to-Image Diffusion Models. Zhang, Han, Ghosh, Metaxas, Ren, CVPR 2023.
arXiv:2212.04489

A network that was fine-tuned on one picture, ε̂, knows its content, and the network as it was, ε, knows how to follow a
prompt. Until the level K the two guide together, ε̂ with the picture's own prompt ĉ and ε with the target's c
(model-based guidance, section 3.2):

    ε̃ = w·(v·ε̂(z, ĉ) + (1 - v)·ε(z, c)) + (1 - w)·ε(z).

After it c guides alone. All predictions are of one x, so the same line holds for x0 and for velocities.
The expert ε̂ is not a second network. It is the loaded one under a weight hook of ĉ's CONDITIONING.

Differs from the paper: the fine-tuning is any that Learn Concept does. The patch-based one, which lets the picture
grow, adds an encoding of positions to the network, which no LoRA file holds, and is not built.
Checked against: zhang-zx/SINE@c0df950, the formula of its samplers, with two separate networks.
"""
from dataclasses import dataclass

from ..editing.editor import Editor
from ..editing.predictions import Asked
from ..host.hooks import weights_changed


@dataclass(frozen=True, eq=False)
class SINE(Editor):
    """expert: ĉ, a CONDITIONING with the hook of the fine-tuned weights.
    share: v.
    start, end: percents of the schedule; K is at the end.
    """
    expert: list
    share: float = 0.7
    start: float = 0.0
    end: float = 0.6
    name, mixes = "SINE", True

    @property
    def prompts(self):
        return (self.expert,)

    def begin(self, run):
        if not weights_changed(run.guider.model_patcher, self.expert):
            raise ValueError("None of the weights on SINE's expert is one of the MODEL being sampled, so the expert is "
                             "the MODEL itself: give it a concept that this MODEL learned.")
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, self.end))

    def asks(self, run, sigma):
        if self.share == 0 or not run.within(sigma, self.start, self.end):
            return {}
        return {"expert": Asked(run.prompts(self)[0], "target")}

    def answered(self, run, x0, sigma):
        if not x0.names:
            return x0.target
        return self.share * x0["expert"] + (1 - self.share) * x0.target
