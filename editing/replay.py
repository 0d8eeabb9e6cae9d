"""Applies what an inversion learned for the prediction (θ_F), on Replay's MODEL."""
from dataclasses import dataclass
from functools import partial

import torch
from comfy.samplers import encode_model_conds
from comfy.utils import repeat_to_batch_size

from ..host.sampling import digest
from ..host.unet_inputs import with_added
from .editor import Editor


@dataclass(frozen=True, eq=False)
class Replayed(Editor):
    """Marks an INVERSION as replayed; guided: at the CFG it was learned at. Its θ_F named "uncond" or "cond" and
    applied by "prediction" takes the place of the negative or the positive cross-attention embedding: [steps, B,
    tokens, C] with axis "step" at its own σ, [1, B, tokens, C] with axis "run" throughout. "uncond_pooled" and
    "cond_pooled" [1, B, P], axis "run", do so for the pooled embedding of models that read one. "cond_mix" [1], axis
    "run": the share of the target's own that stays.

    On the host's U-Nets two are added to what the target's attention reads, before its projections:
    "content.output.3.0", named by the host's place of a block, [steps, B, 2, places, C] to the features that
    self-attention takes its keys and its values from, and "value" [steps, B, tokens, C] to the prompt's embedding where
    cross-attention takes its values from it, multiplied by "value_scale" of its shape: until "value_end" [1], a percent
    of the schedule, and throughout where the prompt is the source's."""
    inversion: object
    guided: bool = False
    replays = True

    def begin(self, run):
        learned_at, cfg = self.inversion.provenance.get("guidance"), getattr(run.guider, "cfg", None)
        theta, method, learned = self.inversion.theta, self.inversion.method, self.inversion.provenance.get("negative")
        if self.guided and None not in (learned_at, cfg) and abs(cfg - learned_at) > 1e-6:
            self.inversion.say_once("The %s INVERSION was made for CFG %g and is sampled at %g: the picture comes back "
                                    "less exactly.",
                                    method, learned_at, cfg)
        elif self.guided and learned and "negative" in run.guider.original_conds:
            if digest(e["cross_attn"] for e in run.guider.original_conds["negative"]) != learned:
                self.inversion.say_once("The %s INVERSION was made with another negative prompt than is sampled: the "
                                        "picture comes back less exactly.", method)
        elif not theta and cfg not in (None, 1) and run.editors == (self,):
            self.inversion.say_once("The %s INVERSION was made at CFG 1 and is sampled at %g with no editor: the "
                                    "picture comes back less exactly than from Negative-Prompt Invert or Null-Text "
                                    "Optimize.", method, cfg)
        for name in [n for n in ("cond", "value") if n in theta and (n == "value" or self._mix(n))]:
            learned = theta[name].tensor.shape[-2]
            other = {e["model_conds"]["c_crossattn"].cond.shape[1] for e in run.targets()} - {learned}
            if other:
                raise ValueError(f"The target has {other.pop()} tokens, the {self.inversion.method} INVERSION learned "
                                 f"{learned}: keep both prompts under 75 tokens.")
        if self._places() and any("area" in e for e in run.targets()):
            raise ValueError(f"The {self.inversion.method} INVERSION learned the whole picture's self-attention and "
                             "the target has an area: remove Conditioning (Set Area).")

    def conditions(self, run, conds, sigma):
        for name, role in (("uncond", "null"), ("cond", "target")):
            theta = self.inversion.theta.get(name)
            if theta is not None:
                embedding = theta.tensor[0 if theta.axis == "run" else self.inversion.step(sigma)]
                made = {}  # entries of one text go on sharing theirs
                conds = [c if c is None or run.role(conds, i) != role
                         else [self._with(e, embedding, name, run, made) for e in c] for i, c in enumerate(conds)]
        return conds

    def _with(self, entry, embedding, name, run, made):
        """The entry with another embedding, under the same uuid."""
        held = entry["model_conds"]["c_crossattn"]
        if id(held) not in made:
            learned = repeat_to_batch_size(embedding, run.shape[0]).to(held.cond)
            made[id(held)] = type(held)(self._mixed(name, learned, held.cond, run))
        changed = {"c_crossattn": made[id(held)]}
        pooled = self.inversion.theta.get(f"{name}_pooled")
        if pooled is not None and "y" in entry["model_conds"]:
            memory = run.memory(self)
            if entry["uuid"] not in memory:
                own, y = entry["model_conds"]["y"], _adm({**entry, "pooled_output": pooled.tensor[0]}, name, run)
                memory[entry["uuid"]] = type(y)(self._mixed(name, y.cond, own.cond, run))
            changed["y"] = memory[entry["uuid"]]
        return {**entry, "model_conds": {**entry["model_conds"], **changed}}

    @staticmethod
    def install(model_options, learned, call):
        """model_options whose blocks add what was learned to the target's rows."""
        for editor in learned:
            theta, places = editor.inversion.theta, editor._places()
            if "value" in theta or places:
                step = editor.inversion.step(call.sigma)
                contents = {place: theta[name].tensor[step] for place, name in places.items()}
                value, scale = (theta[n].tensor[step] if n in theta else None for n in ("value", "value_scale"))
                model_options = with_added(model_options, value, contents, partial(editor._takes, call), scale)
        return model_options

    def _takes(self, call, kind, index, uuid) -> bool:
        """Whether a chunk's rows get the "value" or the "content"."""
        role, entry = call.chunk(index, uuid)
        if role != "target" or kind == "content":
            return role == "target"
        if call.run.within(call.sigma, 0, float(self.inversion.theta["value_end"].tensor)):
            return True
        memory, key, source = call.run.memory(self), ("source", uuid), self.inversion.conditioning[0][0]
        if key not in memory:
            text = entry["model_conds"]["c_crossattn"].cond
            memory[key] = torch.equal(text, repeat_to_batch_size(source, text.shape[0]).to(text))
        return memory[key]

    def _places(self) -> dict:
        """(section, block, depth) of what was learned for self-attention -> its name."""
        found = {name: name.split(".")[1:] for name in self.inversion.theta if name.startswith("content.")}
        return {(section, int(block), int(depth)): name for name, (section, block, depth) in found.items()}

    def _mix(self, name) -> float:
        theta = self.inversion.theta.get(f"{name}_mix")
        return 0.0 if theta is None else float(theta.tensor)

    def _mixed(self, name, learned, own, run):
        mix = self._mix(name)
        return torch.lerp(*(repeat_to_batch_size(t, run.shape[0]) for t in (learned, own)), mix) if mix else learned


def _adm(entry, name, run):
    """The host's own vector of the entry's pooled embedding and sizes."""
    device = entry["model_conds"]["y"].cond.device
    sizes, prompt_type = torch.empty(run.shape, device=device), "negative" if name == "uncond" else "positive"
    encoded, = encode_model_conds(run.guider.inner_model.extra_conds, [entry], sizes, device, prompt_type,
                                  latent_image=sizes)
    return encoded["model_conds"]["y"]
