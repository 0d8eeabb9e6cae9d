"""Samples from an INVERSION: what the method learned goes into the prediction, on Replay's MODEL, and what it recorded
into the step, by Replay's SAMPLER."""
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.guiders import encode_model_conds, padded
from ..host.network import with_added
from ..host.sampling import Solver, check_family, digest, sample, split_at
from ..inversion.method import method_of
from ..inversion.trajectory import Inversion
from .editor import Editor
from .run import attach

# what a prompt of some families has beside its embedding: LTX-Video's mask, HiDream's other text encoder
BESIDE = "attention_mask", "encoder_hidden_states_llama3"


class Replay(NamedTuple):
    """What a sampler node takes: the host's MODEL, SAMPLER, SIGMAS and LATENT."""
    model: Any
    sampler: Solver
    sigmas: Tensor
    latent: dict[str, Tensor]


def replay(model, inversion: Inversion, start=0.0, sampler=None) -> Replay:
    """Sampling from an INVERSION, from `start` on, a percent of the full schedule.

    sampler: a host's SAMPLER; None for the method's own steps, or Euler's."""
    check_family(model, inversion)
    method = method_of(inversion)
    if inversion.theta and method.reverse and sampler is not None:
        raise ValueError(f"{inversion.method} recorded {', '.join(inversion.theta)} for its own steps, which the "
                         "connected SAMPLER does not take: leave the sampler input empty.")
    sigmas = method.sigmas(inversion)
    sigmas = sigmas[split_at(model, sigmas, start):].clone()  # uni_pc writes into what it is given
    if len(sigmas) < 2:
        raise ValueError(f"Starting at {start:.0%} leaves no step of the inversion's {inversion.schedule}: choose "
                         "an earlier start (0 is the noisiest level).")
    if method.reverse and sampler is None:
        solver = Solver(method.reverse(inversion), inversion=inversion, coupled=method.coupled)
    else:
        solver = Solver(inversion=inversion) if sampler is None else Solver.of(sampler)
    latent = model.get_model_object("latent_format").process_out(inversion.at(float(sigmas[0])))
    return Replay(attach(model, Replayed(inversion, method.guided)), solver, sigmas, {"samples": latent})


def retrace(start: Replay, inversion: Inversion, cfg=1.0, negative=None) -> tuple[list[Tensor], Tensor]:
    """(path, latents) of a replay of the source.

    path: the latents in sampler space at each level, S+1 on the CPU.
    latents: the last of them in model space.
    """
    model, solver, sigmas, latent = start
    path = []
    found = sample(model, inversion.conditioning, latent["samples"], sigmas, solver, cfg, negative,
                   callback=lambda i, x0, x, steps: path.append(x.float().cpu()))
    return [*path, model.get_model_object("latent_format").process_in(found).float().cpu()], found


@dataclass
class Met:
    """What a run met, by the uuid of an entry.

    vectors: the host's vector of the pooled embedding in its place.
    sources: whether its prompt is the source's.
    """
    vectors: dict = field(default_factory=dict)
    sources: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Replayed(Editor):
    """Puts what an INVERSION learned (θ_F applied by "prediction") into the prediction.

    inversion: the one that is replayed.
    guided: whether what it learned belongs to the CFG it was learned at.

    θ_F has, by these names:
    uncond, cond: cross-attention embeddings in place of the negative's or the positive's, [steps,B,tokens,C] with axis
    "step" at its own σ, [1,B,tokens,C] with axis "run" throughout.
    uncond_pooled, cond_pooled: [1,B,P], the pooled embedding of models that read one.
    cond_mix: [1], the share of the target's own embedding that stays.

    Two are added on the host's U-Nets to what the target's attention reads, before its projections:
    content.output.3.0: named by the block's address, [steps,B,2,places,C], for the features that self-attention takes
    its keys and its values from.
    value: [steps,B,tokens,C], for the prompt's embedding where cross-attention takes its values from it.
    value_scale: what that embedding is multiplied by, of the same shape.
    value_end: [1], the percent of the schedule until which a prompt gets both; the source's gets them throughout.
    """
    inversion: Inversion
    guided: bool = False
    State = Met
    replays = True

    def begin(self, run):
        inversion, cfg, negatives = self.inversion, getattr(run.guider, "cfg", None), run.guider.original_conds
        theta, made_for = inversion.theta, inversion.settings.get("guidance")
        negative = inversion.settings.get("negative")
        if self.guided and cfg is not None and made_for is not None and abs(cfg - made_for) > 1e-6:
            inversion.warn_once("The %s INVERSION was made for CFG %g and is sampled at %g: the picture comes back "
                                "less exactly.", inversion.method, made_for, cfg)
        elif self.guided and negative and "negative" in negatives:
            if digest(e["cross_attn"] for e in negatives["negative"]) != negative:
                inversion.warn_once("The %s INVERSION was made with another negative prompt than is sampled: the "
                                    "picture comes back less exactly.", inversion.method)
        elif not theta and cfg not in (None, 1) and run.editors == (self,):
            inversion.warn_once("The %s INVERSION was made at CFG 1 and is sampled at %g with no editor: the picture "
                                "comes back less exactly than from Negative-Prompt Invert or Null-Text Optimize.",
                                inversion.method, cfg)
        beside = {name for e in run.guider.conds.get("negative", ()) for name in BESIDE if name in e["model_conds"]}
        if "uncond" in theta and beside and digest(e["cross_attn"] for e in negatives["negative"]) != digest(
                embedding for embedding, _ in inversion.conditioning):
            inversion.warn_once("The negative prompt has %s beside its embedding, and what the %s INVERSION learned "
                                "goes with the source's: connect the source CONDITIONING as the sampler's negative.",
                                ", ".join(sorted(beside)), inversion.method)
        prompts = max((len(e["cross_attn"]) for name in run.edited() for e in negatives[name]), default=1)
        if inversion.pictures < inversion.batch and inversion.pictures % prompts:
            noises = inversion.batch // inversion.pictures
            raise ValueError(f"The target has {prompts} prompts, and {noises} noises lead to each of the "
                             f"{inversion.method} INVERSION's pictures ({inversion.pictures}), so that each noise "
                             "would be asked another prompt: invert with n_avg 1, or sample one prompt at a time.")
        for name in [n for n in ("cond", "value") if n in theta and (n == "value" or self._mix(n))]:
            tokens = theta[name].tensor.shape[-2]
            held = [e["model_conds"]["c_crossattn"].cond for e in run.targets()]
            other = {x.shape[1] for x in held if x.shape[1] != tokens and x[:, 0].any()}
            if other:
                raise ValueError(f"The target has {other.pop()} tokens, the {inversion.method} INVERSION learned "
                                 f"{tokens}: keep both prompts under 75 tokens.")
        if self._addresses() and any("area" in e for e in run.targets()):
            raise ValueError(f"The {inversion.method} INVERSION learned the whole picture's self-attention and the "
                             "target has an area: remove Conditioning (Set Area).")

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
            learned = padded(repeat_to_batch_size(embedding, run.shape[0]).to(held.cond), held.cond)
            made[id(held)] = type(held)(self._mixed(name, learned, held.cond, run))
        changed = {"c_crossattn": made[id(held)]}
        pooled = self.inversion.theta.get(f"{name}_pooled")
        if pooled is not None and "y" in entry["model_conds"]:
            vectors = run.state(self).vectors
            if entry["uuid"] not in vectors:
                own, y = entry["model_conds"]["y"], _adm({**entry, "pooled_output": pooled.tensor[0]}, name, run)
                vectors[entry["uuid"]] = type(y)(self._mixed(name, y.cond, own.cond, run))
            changed["y"] = vectors[entry["uuid"]]
        return {**entry, "model_conds": {**entry["model_conds"], **changed}}

    @staticmethod
    def install(model_options, learned, call):
        """model_options whose blocks add what was learned to the target's rows."""
        for editor in learned:
            theta, addresses = editor.inversion.theta, editor._addresses()
            if "value" in theta or addresses:
                step = editor.inversion.step(call.sigma)
                contents = {address: theta[name].tensor[step] for address, name in addresses.items()}
                value, scale = (theta[n].tensor[step] if n in theta else None for n in ("value", "value_scale"))
                model_options = with_added(model_options, value, contents, partial(editor._takes, call), scale)
        return model_options

    def _takes(self, call, kind, chunk) -> bool:
        """Whether a chunk's rows get the "value" or the "content"."""
        _, uuid, role, entry, _ = call.part(chunk)
        if role != "target" or kind == "content":
            return role == "target"
        if call.run.within(call.sigma, 0, float(self.inversion.theta["value_end"].tensor)):
            return True
        sources, source = call.run.state(self).sources, self.inversion.conditioning[0][0]
        if uuid not in sources:
            text = entry["model_conds"]["c_crossattn"].cond
            sources[uuid] = torch.equal(text, repeat_to_batch_size(source, text.shape[0]).to(text))
        return sources[uuid]

    def _addresses(self) -> dict:
        """(section, block, depth) of what was learned for self-attention -> its name."""
        found = {name: name.split(".")[1:] for name in self.inversion.theta if name.startswith("content.")}
        return {(section, int(block), int(depth)): name for name, (section, block, depth) in found.items()}

    def _mix(self, name) -> float:
        theta = self.inversion.theta.get(f"{name}_mix")
        return 0.0 if theta is None else float(theta.tensor)

    def _mixed(self, name, learned, own, run):
        mix = self._mix(name)
        if not mix:
            return learned
        return torch.lerp(repeat_to_batch_size(learned, run.shape[0]), repeat_to_batch_size(own, run.shape[0]), mix)


def _adm(entry, name, run):
    """The host's own vector of the entry's pooled embedding and sizes."""
    device = entry["model_conds"]["y"].cond.device
    sizes, prompt_type = torch.empty(run.shape, device=device), "negative" if name == "uncond" else "positive"
    encoded, = encode_model_conds(run.guider.inner_model.extra_conds, [entry], sizes, device, prompt_type,
                                  latent_image=sizes)
    return encoded["model_conds"]["y"]
