"""Inverting a picture, and learning along an inversion, as plain calls.

    inversion, noise, sigmas = invert("EDICT", model, source, latent, cfg=3.0, negative=negative)
    learned = learn("Null-Text", model, inversion)

Nodes, benchmarks and scripts make the same calls, with the same defaults: a method's own (inversion/method.py).
"""
import dataclasses
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host.canvas import log, retract_warnings
from ..host.distilled import few_steps, lacked_guidance, whole_steps
from ..host.gradients import differentiable
from ..host.guiders import PromptGuider
from ..host.network import require_unet
from ..host.sampling import (
    Solver,
    check_family,
    digest,
    fingerprint,
    guidance_functions,
    handed_on,
    latent_of,
    patches,
    prediction_type,
    rows_counted,
    rows_may_mix,
    sample,
    sample_with,
    schedule,
    split_at,
)
from ..inversion.grid import seen_as
from ..inversion.method import Found, Method, method_named
from ..inversion.trajectory import Inversion, check_schedule
from .editor import require_plain
from .network import Network
from .reference import levels_together

# of one forward that several levels share: two rows of SDXL's 1024 px, which the host makes room for
ROWS, CELLS = 8, 2 ** 15
FEW = 8  # the most steps that few-step checkpoints are sampled with


def levels_a_forward(model, latent, source) -> int:
    """How many levels may share a forward."""
    samples = latent["samples"]
    return levels_together(len(samples), samples.shape[2:], ROWS, CELLS) if rows_may_mix(model, source) else 1


REFUSED = {"control": "Apply ControlNet", "gligen": "GLIGEN Textbox Apply", "hooks": "hooks (Cond Set Props)",
           "area": "Conditioning (Set Area)", "mask": "Conditioning (Set Mask)",
           "start_percent": "Conditioning Set Timestep Range", "end_percent": "Conditioning Set Timestep Range"}


def source_latent(model, latent, what="The LATENT"):
    """The picture's latents [B,C,…] in model space; ValueError on what holds no picture of this MODEL's."""
    x = latent_of(model, latent["samples"]).float()
    if not x.count_nonzero():
        raise ValueError(f"{what} is empty: all {x.numel()} values are zero, there is no picture in it. Connect the "
                         "picture through VAE Encode.")
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{what} has {bad} of {x.numel()} values that are NaN or infinite: run the VAE in fp32 "
                         "(--fp32-vae), or repair the node that made it.")
    kind = model.get_model_object("latent_format")
    if x.ndim != kind.latent_dimensions + 2:
        raise ValueError(f"{what} is {list(x.shape)}, of {x.ndim} dimensions, this {type(model.model).__name__} "
                         f"MODEL works on {kind.latent_dimensions + 2}: encode with the MODEL's own VAE.")
    channels = kind.latent_channels
    if x.shape[1] != channels:
        raise ValueError(f"{what} has {x.shape[1]} channels, this MODEL works on {channels}: encode with the "
                         "MODEL's own VAE.")
    return x


def source_conditioning(conditioning, batch):
    """The source CONDITIONING with its tensors on the CPU; ValueError on what an INVERSION cannot keep."""
    check_prompt("source", conditioning, batch)
    cross_attn, extras = conditioning[0]
    return [[_cpu(cross_attn), {k: _cpu(v) for k, v in extras.items()}]]


def check_prompt(name, conditioning, batch):
    """ValueError on a CONDITIONING that is more than one prompt of the whole picture, or of each of the pictures."""
    if len(conditioning) != 1:
        raise ValueError(f"The {name} CONDITIONING has {len(conditioning)} entries, one is needed: remove Conditioning "
                         "(Combine), and describe the picture in one prompt.")
    cross_attn, extras = conditioning[0]
    kept = next((k for k in REFUSED if extras.get(k) is not None), None)
    if kept:
        raise ValueError(f"The {name} CONDITIONING carries {kept!r}, which an INVERSION does not keep: remove "
                         f"{REFUSED[kept]} from it (what is sampled later may have it).")
    if cross_attn is not None and batch % len(cross_attn):
        raise ValueError(f"The {name} CONDITIONING has {len(cross_attn)} prompts, and there are {batch} pictures: give "
                         "one prompt for all, or one a picture.")


def _cpu(value):
    if isinstance(value, list):
        return [_cpu(v) for v in value]
    return value.cpu() if isinstance(value, torch.Tensor) else value


def schedule_of(name, model, scheduler, steps):
    """SIGMAS of the host's scheduler. Warns if they are not what `steps` suggests."""
    sigmas = schedule(model, scheduler, steps)
    if len(sigmas) - 1 != steps:
        log.warning("%s is set to %d steps, but %s gives %d on this MODEL: sample with its SIGMAS, or with the same "
                    "scheduler and steps.", name, steps, scheduler, len(sigmas) - 1)
    if not split_at(model, sigmas, 0.5):
        log.warning("%s reaches only sigma %.3g, but this MODEL's noise begins at %.3g, so an edit changes little: "
                    "take more steps than %d, or another scheduler than %s.", name, sigmas[0], _most(model), steps,
                    scheduler)
    return sigmas


def check_range(model, sigmas):
    """ValueError on SIGMAS above the MODEL's own; schedules of other nodes round its last digits."""
    if sigmas[0] > 1.001 * _most(model):
        raise ValueError(f"SIGMAS begin at {sigmas[0]:.4g}, this {type(model.model).__name__} MODEL knows noise up to "
                         f"sigma {_most(model):.4g}: connect a scheduler node with this MODEL, or leave the input "
                         "empty.")


def warn_of_distillation(method: Method, model, source, steps):
    """Warns of a way back that a checkpoint of few steps may not have, and of a source that names no guidance."""
    known, kind = few_steps(model), type(model.model).__name__
    if method.trajectory == "deterministic" and method.steps >= FEW:  # others need no way back, or are made for few
        if known:
            log.warning("%s walks the sampled path back to the noise, and this %s MODEL %s: a checkpoint of few steps, "
                        "it seems, which this method was not made for. FlowEdit Invert needs no way back.", method.node,
                        kind, known)
        elif steps <= FEW and steps < method.steps and prediction_type(model) == "flow":
            log.warning("%s takes %d steps (paper: %d), as few-step checkpoints do (Turbo, Lightning), which ComfyUI "
                        "does not tell from others. On one of those choose FlowEdit Invert, which needs no way back; "
                        "else take more steps.", method.node, steps, method.steps)
    if guidance := lacked_guidance(model, source):
        log.warning("The source CONDITIONING names no guidance and this %s MODEL reads one, so ComfyUI takes %g: "
                    "connect FluxGuidance between them (papers: 1, FlowEdit: 1.5), and another to the target.", kind,
                    guidance)


def _most(model) -> float:
    return float(model.get_model_object("model_sampling").sigma_max)


class Inverted(NamedTuple):
    """What inverting a picture gives.

    inversion: the INVERSION.
    noise: its noisiest latent, as the host's LATENT.
    sigmas: its schedule.
    """
    inversion: Inversion
    noise: dict[str, Tensor]
    sigmas: Tensor


def invert(method: Method | str, model, source: list, latent: dict, steps: int | None = None,
           scheduler: str | None = None, sigmas: Tensor | None = None, cfg: float | None = None,
           negative: list | None = None, **settings) -> Inverted:
    """Invert a picture, a host's LATENT, that the CONDITIONING `source` describes.

    method: one of the table's, or its name. What is not given is its default. Sigmas win over steps and scheduler.
    settings: the method's own.
    """
    method = method if isinstance(method, Method) else method_named(method)
    steps = method.steps if steps is None else steps
    scheduler = method.scheduler if scheduler is None else scheduler
    cfg = method.cfg if cfg is None else cfg
    settings = _checked(method, model, steps if sigmas is None else len(sigmas) - 1, cfg, negative, settings)
    if method.along:
        found = invert(method.along, model, source, latent, steps, scheduler, sigmas)
        return found._replace(inversion=learn(method, model, found.inversion, cfg, negative, **settings))
    if method.invert is None:
        raise ValueError(f"{method.node} learns along an inversion and makes none: call `learn` with one, such as DDIM "
                         "Invert's.")
    retract_warnings()
    require_plain(model, method.node)
    identity = fingerprint(model)
    x = source_latent(model, latent)
    conditioning = source_conditioning(source, len(x))
    scheduler = scheduler if sigmas is None else "own"
    sigmas = schedule_of(method.node, model, scheduler, steps) if sigmas is None else sigmas.float().cpu()
    check_schedule(sigmas)
    check_range(model, sigmas)
    warn_of_distillation(method, model, source, len(sigmas) - 1)
    unguided = cfg in (None, 1)
    # guidance magnifies the rounding of a shared forward
    known = {**seen_as(identity), "together": levels_a_forward(model, latent, source) if unguided else 1}
    taken = {key: known[key] for key in method.takes} | {key: _sigma(model, at) for key, at in method.percents.items()}
    inverting, found = partial(method.invert, **taken, **settings), []

    def solver(*args, **kwargs):
        found.append(inverting(*args, **kwargs))
        return found[0].latents[0]

    counted = model.clone()
    rows = rows_counted(counted)
    began = time.perf_counter()
    noise = sample(counted, conditioning, x, sigmas, Solver(solver), 1.0 if cfg is None else cfg, negative)
    latents, theta, notes = found[0]
    kept, noted = _noted(method, settings, cfg, None if unguided else negative)
    inversion = Inversion(
        method.levels(sigmas), tuple(z.float().cpu() for z in latents), conditioning, identity, method.name,
        method.trajectory, theta, kept,
        {"steps": len(sigmas) - 1, "scheduler": scheduler, "evaluations": sum(rows),
         "seconds": time.perf_counter() - began, "patches": patches(model), **noted, **notes})
    return Inverted(inversion, {"samples": handed_on(noise)}, sigmas.clone())


def learn(method: Method | str, model, inversion: Inversion, cfg: float | None = None, negative: list | None = None,
          target: list | None = None, **settings) -> Inversion:
    """Let a method learn along an INVERSION's trajectory; returns the new INVERSION.

    method: one of the table's, or its name. What is not given is its default. negative, target: CONDITIONINGs.
    settings: the method's own.
    """
    method = method if isinstance(method, Method) else method_named(method)
    cfg = method.cfg if cfg is None else cfg
    settings = _checked(method, model, len(inversion.sigmas) - 1, cfg, negative, settings)
    if method.learn is None:
        raise ValueError(f"{method.node} makes a trajectory and learns along none: call `invert` with a picture.")
    if method.unet:
        require_unet(model, method.node)
    require_plain(model, method.node)
    check_family(model, inversion)
    if inversion.latents is None or inversion.theta or inversion.trajectory != "deterministic":
        raise ValueError(f"{method.node} follows a trajectory that Euler's steps made, this INVERSION's method is "
                         f"{inversion.method}: connect DDIM Invert, Fixed-Point Invert or ReNoise Invert (eta 0).")
    if method.asks == "gradients":
        for prompt, conditioning in (("negative", negative), ("target", target)):
            if conditioning is not None:
                check_prompt(prompt, conditioning, inversion.batch)
        changed = guidance_functions(model)
        if changed and cfg != 1:
            log.warning("%s learns for plain guidance at CFG %g, and another node changes this MODEL's guidance (%s): "
                        "the picture comes back less exactly. Remove that node, or choose Direct Invert, which knows "
                        "it.", method.node, cfg, ", ".join(changed))
    given = {"source": inversion.conditioning, "null": negative, "target": target}
    prompts = {prompt: conditioning for prompt, conditioning in given.items() if conditioning is not None}
    began = time.perf_counter()
    flow = inversion.fingerprint.prediction == "flow"
    learning = partial(method.learn, cfg=cfg, flow=flow, **settings)
    found, rows = _learned(learning, method.asks, Network(model, inversion, prompts), cfg)
    spent = {"evaluations": inversion.provenance.get("evaluations", 0) + sum(rows),
             "seconds": inversion.provenance.get("seconds", 0.0) + time.perf_counter() - began}
    kept, noted = _noted(method, settings, cfg, None if cfg == 1 else negative)
    return dataclasses.replace(inversion, method=method.name, theta=found.theta, settings=kept, provenance={
        **inversion.provenance, "trajectory": inversion.method, **spent, **noted, **found.notes})


def _learned(learning, asks, network: Network, cfg) -> tuple[Found, list[int]]:
    """(the result of learning(network, path, sigmas) in a run that answers its calls, the
    rows that the network saw)."""
    model, inversion = network.model, network.inversion
    if not asks:
        return learning(network, inversion.path, inversion.sigmas), []
    found = []

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        path = [z.clone().to(x) for z in inversion.path]
        network.begin(denoise, extra_args, path)
        found.append(learning(network, path, sigmas, callback=callback, disable=disable))
        return path[-1]

    if asks == "guided":
        counted = model.clone()
        rows = rows_counted(counted)
        sample(counted, inversion.conditioning, _clean(model, inversion), inversion.sigmas, Solver(solver), cfg,
               network.prompts.get("null"))
        return found[0], rows
    with differentiable(model) as m:  # the only clone: of two that go at once the host forgets which MODEL they are of
        rows = rows_counted(m)
        conds = {name: _own(conditioning) for name, conditioning in network.prompts.items()}
        sample_with(PromptGuider(m, conds), _clean(m, inversion), inversion.sigmas.clone(), Solver(solver))
    return found[0], rows


def _clean(model, inversion) -> Tensor:
    return model.get_model_object("latent_format").process_out(inversion.path[-1].clone())


def _own(value):
    """A copy of a CONDITIONING whose tensors are no inference tensors."""
    if isinstance(value, list):
        return [_own(v) for v in value]
    if isinstance(value, dict):
        return {k: _own(v) for k, v in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def _checked(method: Method, model, steps, cfg, negative, given) -> dict[str, Any]:
    """All settings of a method; ValueError on what does not go together."""
    settings = method.filled(given)
    if method.check is not None:
        method.check(steps=steps, negative=negative is not None, **settings)
    if method.no_flow and prediction_type(model) == "flow":
        raise ValueError(method.no_flow.format(node=method.node, model=type(model.model).__name__, **settings))
    if whole_steps(model):
        raise ValueError(f"{method.node} asks the network at noise levels, and this {type(model.model).__name__} MODEL "
                         "is distilled to whole steps between those that are sampled (meanflow): load the checkpoint "
                         "that was not distilled.")
    if method.cfg is None and cfg not in (None, 1):
        raise ValueError(f"{method.node} runs without guidance, this call has CFG {cfg:g}: leave cfg out, and sample "
                         "at it.")
    if "uncond" not in method.theta:  # else what was learned takes the negative's place
        check_guidance(method.node, cfg, negative)
    return settings


def check_guidance(node, cfg, negative):
    if cfg not in (None, 1) and negative is None:
        raise ValueError(f"{node} has CFG {cfg:g} and no negative CONDITIONING: connect one (an empty prompt), or set "
                         "cfg to 1.")


def _noted(method: Method, settings, cfg, negative) -> tuple[dict, dict]:
    """What an INVERSION stores of a method's settings, and what it notes about them.

    negative: the negative prompt of its guidance.
    """
    all_of_them = {**settings, **({} if cfg is None else {"guidance": cfg})}
    if negative is not None and "uncond" not in method.theta:
        all_of_them["negative"] = digest(embedding for embedding, _ in negative)
    needed = method.needed
    return ({name: value for name, value in all_of_them.items() if name in needed},
            {name: value for name, value in all_of_them.items() if name not in needed})


def _sigma(model, percent) -> float:
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))
