"""Applies what an inversion learned for the prediction (θ_F), on Replay's MODEL."""
from dataclasses import dataclass

import torch
from comfy.samplers import encode_model_conds
from comfy.utils import repeat_to_batch_size

from .session import Editor


@dataclass(frozen=True, eq=False)
class Learned(Editor):
    """Marks an INVERSION as replayed. Its θ_F named "uncond" or "cond" and applied by "prediction" takes the place of
    the negative or the positive cross-attention embedding: [steps, B, tokens, C] with axis "step" at its own σ, [1, B,
    tokens, C] with axis "run" throughout. "uncond_pooled" and "cond_pooled" [1, B, P], axis "run", do so for the pooled
    embedding of models that read one."""
    inversion: object
    replays = True

    def conditions(self, run, conds, sigma):
        for name, role in (("uncond", "null"), ("cond", "target")):
            theta = self.inversion.theta.get(name)
            if theta is not None:
                embedding = theta.tensor[0 if theta.axis == "run" else self.inversion.step(sigma)]
                conds = [c if c is None or run.role(conds, i) != role
                         else [self._with(e, embedding, name, run) for e in c] for i, c in enumerate(conds)]
        return conds

    def _with(self, entry, embedding, name, run):
        """The entry with another embedding, under the same uuid."""
        held = entry["model_conds"]["c_crossattn"]
        embedding = repeat_to_batch_size(embedding, run.shape[0]).to(held.cond)
        changed = {"c_crossattn": type(held)(embedding)}
        pooled = self.inversion.theta.get(f"{name}_pooled")
        if pooled is not None and "y" in entry["model_conds"]:
            memory = run.memory(self)
            if entry["uuid"] not in memory:
                memory[entry["uuid"]] = _adm({**entry, "pooled_output": pooled.tensor[0]}, name, run)
            changed["y"] = memory[entry["uuid"]]
        return {**entry, "model_conds": {**entry["model_conds"], **changed}}


def _adm(entry, name, run):
    """The host's own vector of the entry's pooled embedding and sizes."""
    device = entry["model_conds"]["y"].cond.device
    sizes, prompt_type = torch.empty(run.shape, device=device), "negative" if name == "uncond" else "positive"
    encoded, = encode_model_conds(run.guider.inner_model.extra_conds, [entry], sizes, device, prompt_type)
    return encoded["model_conds"]["y"]
