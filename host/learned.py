"""Applies what an inversion learned for the prediction (θ_F), on Replay's MODEL."""
from dataclasses import dataclass

from comfy.utils import repeat_to_batch_size

from .session import Editor


@dataclass(frozen=True, eq=False)
class Learned(Editor):
    """Marks an INVERSION as replayed. Its θ_F named "uncond" or "cond" [steps, B, tokens, C], axis "step" and applied by "prediction",
    takes the place of the negative or the positive cross-attention embedding at its own σ."""
    inversion: object
    replays = True

    def conditions(self, run, conds, sigma):
        for name, role in (("uncond", "null"), ("cond", "target")):
            theta = self.inversion.theta.get(name)
            if theta is not None:
                embedding = theta.tensor[self.inversion.step(sigma)]
                conds = [c if c is None or run.role(conds, i) != role else [_with(e, embedding, run) for e in c]
                         for i, c in enumerate(conds)]
        return conds


def _with(entry, embedding, run):
    """The entry with another cross-attention embedding, under the same uuid."""
    held = entry["model_conds"]["c_crossattn"]
    embedding = repeat_to_batch_size(embedding, run.shape[0]).to(held.cond)
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(held)(embedding)}}
