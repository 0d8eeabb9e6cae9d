"""Direct Consistency Optimization for Compositional Text-to-Image Personalization. Lee, Kwak, Sohn, Shin, 2024.
arXiv:2402.12004

Reward guidance: what a model has learned over its frozen self is a reward, whose gradient is the difference of their
predictions. To the frozen model's classifier-free guidance it is added with a scale λ of its own,

    ε̂ = ε_φ(∅) + w·(ε_φ(c) - ε_φ(∅)) + λ·(ε_θ(c*) - ε_φ(c)),

where c* is the prompt with what was learned and c the prompt without it. λ trades the subject for the prompt. On x0 the
line is the same. `concept/dco.py` is how such a model learns; any LoRA may take its place.

ε_θ is the MODEL being sampled under its own LoRA, which hangs on c* alone (the host's hooks on weights). No second
model is loaded.
Checked against: kyungmnlee/dco@164ae17, its pipeline's line on the same three predictions.
"""
from dataclasses import dataclass

from ..editing.editor import Editor
from ..editing.predictions import Asked
from ..host.hooks import weights_changed
from ..host.sampling import digest


@dataclass(frozen=True, eq=False)
class RewardGuidance(Editor):
    """expert: CONDITIONING of c*, with the LoRA's hook.
    scale: λ.
    start, end: percents of the schedule.
    """
    expert: list
    scale: float = 3.0
    start: float = 0.0
    end: float = 1.0
    name = "Reward Guidance"

    @dataclass
    class State:
        """reward: λ·(x0_θ(c*) - x0_φ(c)) of this evaluation of the model."""
        reward: object = 0.0

    @property
    def prompts(self):
        return (self.expert,)

    def begin(self, run):
        told = digest([e[0] for e in self.expert])
        same = any(told == digest([e.get("cross_attn") for e in run.guider.original_conds[name]])
                   for name in run.edited())
        if same and not weights_changed(run.guider.model_patcher, self.expert):
            raise ValueError(f"{self.name} draws in what its expert knows and the prompt being sampled does not, and "
                             "both are one text under the same weights: connect Concept on One Prompt.")
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, self.end))

    def asks(self, run, sigma):
        entries, = run.prompts(self)
        return {"expert": Asked(entries, "target")} if self.scale and run.within(sigma, self.start, self.end) else {}

    def answered(self, run, x0, sigma):
        run.state(self).reward = self.scale * (x0["expert"] - x0.target) if "expert" in x0.names else 0.0

    def after(self, run, x0, sigma):
        state = run.state(self)
        reward, state.reward = state.reward, 0.0
        return x0 + reward
