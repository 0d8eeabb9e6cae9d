"""Inverting a picture, and learning along an inversion, as plain calls."""
import dataclasses
import time

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ..host.canvas import afresh, log
from ..host.gradients import differentiable
from ..host.guiders import PromptGuider
from ..host.sampling import (
    Solver,
    check_family,
    digest,
    fingerprint,
    patches,
    prediction_type,
    rows_may_mix,
    run,
    sample,
    schedule,
    split_at,
)
from ..inversion.grid import seen_as
from ..inversion.trajectory import Inversion, Theta, check_schedule
from .editor import require_plain
from .reference import levels_together

# of one forward that several levels share: two rows of SDXL's 1024 px, which the host makes room for
ROWS, CELLS = 8, 2 ** 15


def check_stochastic(name, model):
    if prediction_type(model) == "flow":
        raise ValueError(f"{name} reads the noise maps of a DDPM chain, this {type(model.model).__name__} MODEL "
                         "predicts by flow and has none: use DDIM Invert or Direct Invert, or an eps or v model "
                         "(SD1.x, SD2.x, SDXL).")


def recorded_theta(tensors, axis="step"):
    return Theta(torch.stack([t.float().cpu() for t in tensors]), axis, "step")


def levels_a_forward(model, latent, source):
    """How many levels may share a forward."""
    samples = latent["samples"]
    return levels_together(len(samples), samples.shape[-2:], ROWS, CELLS) if rows_may_mix(model, source) else 1


REFUSED = {"control": "Apply ControlNet", "gligen": "GLIGEN Textbox Apply", "hooks": "hooks (Cond Set Props)",
           "area": "Conditioning (Set Area)", "mask": "Conditioning (Set Mask)",
           "start_percent": "Conditioning Set Timestep Range", "end_percent": "Conditioning Set Timestep Range"}


def source_latent(model, latent):
    """The picture's latents [B,C,…] in model space; ValueError on what cannot be inverted."""
    x = comfy.sample.fix_empty_latent_channels(model, latent["samples"]).float()
    if not x.count_nonzero():
        raise ValueError(f"The LATENT is empty: all {x.numel()} values are zero, there is no picture to invert. "
                         "Connect the picture through VAE Encode.")
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {x.numel()} values of the LATENT are NaN or infinite: run the VAE in fp32 "
                         "(--fp32-vae), or repair the node that made it.")
    kind = model.get_model_object("latent_format")
    if x.ndim != kind.latent_dimensions + 2:
        raise ValueError(f"The LATENT is {list(x.shape)}, of {x.ndim} dimensions, this {type(model.model).__name__} "
                         f"MODEL works on {kind.latent_dimensions + 2}: encode with the MODEL's own VAE.")
    channels = kind.latent_channels
    if x.shape[1] != channels:
        raise ValueError(f"The LATENT has {x.shape[1]} channels, this MODEL works on {channels}: encode with the "
                         "MODEL's own VAE.")
    return x


def source_conditioning(conditioning, batch):
    """The source CONDITIONING with its tensors on the CPU; ValueError on what an INVERSION cannot keep."""
    if len(conditioning) != 1:
        raise ValueError(f"The source CONDITIONING has {len(conditioning)} entries, one is needed: remove Conditioning "
                         "(Combine), and describe the picture in one prompt.")
    cross_attn, extras = conditioning[0]
    kept = next((k for k in REFUSED if extras.get(k) is not None), None)
    if kept:
        raise ValueError(f"The source CONDITIONING carries {kept!r}, which an INVERSION does not keep: remove "
                         f"{REFUSED[kept]} from the source (the target may have it).")
    if cross_attn is not None and batch % len(cross_attn):
        raise ValueError(f"The LATENT holds {batch} pictures, the source CONDITIONING {len(cross_attn)} prompts: give "
                         "one prompt for all, or one a picture.")
    return [[_cpu(cross_attn), {k: _cpu(v) for k, v in extras.items()}]]


def _cpu(value):
    if isinstance(value, list):
        return [_cpu(v) for v in value]
    return value.cpu() if isinstance(value, torch.Tensor) else value


def schedule_of(name, model, scheduler, steps):
    """SIGMAS of the host's scheduler; says so where they are not what `steps` lets expect."""
    sigmas = schedule(model, scheduler, steps)
    if len(sigmas) - 1 != steps:
        log.warning("%s is set to %d steps, %s gives %d on this MODEL: sample with its own SIGMAS, or with the same "
                    "scheduler and steps.", name, steps, scheduler, len(sigmas) - 1)
    if not split_at(model, sigmas, 0.5):
        log.warning("%s reaches sigma %.3g only, this MODEL's noise begins at %.3g, so an edit changes little: take "
                    "more steps than %d, or another scheduler than "
                    "%s.", name, sigmas[0], _most(model), steps, scheduler)
    return sigmas


def check_range(model, sigmas):
    """ValueError on SIGMAS above the MODEL's own; schedules of other nodes round its last digits."""
    if sigmas[0] > 1.001 * _most(model):
        raise ValueError(f"SIGMAS begin at {sigmas[0]:.4g}, this {type(model.model).__name__} MODEL knows noise up to "
                         f"sigma {_most(model):.4g}: connect a scheduler node with this MODEL, or leave the input "
                         "empty.")


def _most(model) -> float:
    return float(model.get_model_object("model_sampling").sigma_max)


def invert(name, method, model, source, latent, steps, scheduler, sigmas, solve, cfg=1.0, negative=None,
           trajectory="deterministic", **noted) -> io.NodeOutput:
    """Run a method on the host's guider and return (INVERSION, noise LATENT, SIGMAS).

    name: the node's, for messages; method: its name in inversion/method.py.
    solve(model, x, sigmas, extra_args, callback, disable, flow=, data=) works in sampler space and returns (latents,
    theta): S+1 tensors in the order of sigmas, and {name: Theta}. It sees sigmas descending to 0 and model(x, sigma) ->
    x0.
    """
    afresh()
    require_plain(model, name)
    identity = fingerprint(model)
    x = source_latent(model, latent)
    conditioning = source_conditioning(source, len(x))
    scheduler = scheduler if sigmas is None else "own"
    sigmas = schedule_of(name, model, scheduler, steps) if sigmas is None else sigmas.float().cpu()
    check_schedule(sigmas)
    check_range(model, sigmas)
    found = []

    def solver(*args, **kwargs):
        found.extend(solve(*args, **seen_as(identity), **kwargs))
        return found[0][0]

    counted = model.clone()
    rows = counting(counted)
    began = time.perf_counter()
    noise = sample(counted, conditioning, x, sigmas, Solver(solver), cfg, negative)
    latents, theta = found
    inversion = Inversion(
        sigmas, tuple(z.float().cpu() for z in latents), conditioning, identity, method, trajectory, theta,
        {"steps": len(sigmas) - 1, "scheduler": scheduler, "evaluations": sum(rows),
         "seconds": time.perf_counter() - began,
         "patches": patches(model), **_negative(None if cfg == 1 else negative), **noted})
    noise = noise.to(comfy.model_management.intermediate_device())
    return io.NodeOutput(inversion, {"samples": noise}, sigmas)


def learn(name, method, model, inversion, solve, prompts=None, **noted) -> io.NodeOutput:
    """Let a method learn θ_F along an INVERSION's trajectory, with gradients through the MODEL; returns the new
    INVERSION.

    name and method: as in `invert`. solve(model, x, sigmas, extra_args, callback, disable, path=, flow=) gets x and
    path, the S+1 latents of the trajectory, in sampler space, and returns ({name: Theta}, notes for the provenance).
    model asks for its prompt through host/guiders.prompted: "source", or one of `prompts` {name: CONDITIONING}.
    """
    require_plain(model, name)
    check_family(model, inversion)
    if inversion.latents is None or inversion.theta or inversion.trajectory != "deterministic":
        raise ValueError(f"{name} follows a trajectory that Euler's steps made, this INVERSION's method is "
                         f"{inversion.method}: connect DDIM Invert, Fixed-Point Invert or ReNoise Invert (eta 0).")
    found = []

    def solver(net, x, *args, **kwargs):
        path = [z.clone().to(x) for z in inversion.latents]
        found.extend(solve(net, path[0], *args, path=path, flow=inversion.fingerprint.prediction == "flow", **kwargs))
        return path[-1]

    began = time.perf_counter()
    with differentiable(model) as m:  # the only clone: of two that go at once the host forgets which MODEL they are of
        rows = counting(m)
        conds = {role: _own(c) for role, c in {"source": inversion.conditioning, **(prompts or {})}.items()}
        clean = m.get_model_object("latent_format").process_out(inversion.latents[-1].clone())
        run(PromptGuider(m, conds), clean, inversion.sigmas.clone(), Solver(solver))
    theta, told = found
    spent = {"evaluations": inversion.provenance.get("evaluations", 0) + sum(rows),
             "seconds": inversion.provenance.get("seconds", 0.0) + time.perf_counter() - began}
    return io.NodeOutput(dataclasses.replace(inversion, method=method, theta=theta, provenance={
        **inversion.provenance, "trajectory": inversion.method, **spent, **_negative((prompts or {}).get("null")),
        **noted, **told}))


def _negative(conditioning) -> dict:
    """What Replay needs to tell whether the negative prompt is the one that a method had."""
    return {} if conditioning is None else {"negative": digest(embedding for embedding, _ in conditioning)}


def counting(model) -> list:
    """The rows that the network of this MODEL, a clone, is going to see: each forward's, and twice as many for a
    backward."""
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        out = executor(x, *args, **kwargs)
        if out.requires_grad:
            out.register_hook(lambda grad: rows.append(2 * len(x)))
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "palimpsest.count", count)
    return rows


def _own(value):
    """A copy of a CONDITIONING whose tensors are no inference tensors."""
    if isinstance(value, list):
        return [_own(v) for v in value]
    if isinstance(value, dict):
        return {k: _own(v) for k, v in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def tokens_for(chosen, inversion):
    """The embedding [B,tokens,D] of a CONDITIONING, one for each picture."""
    if len(chosen) != 1:
        raise ValueError(f"The CONDITIONING has {len(chosen)} entries, one is needed: remove Conditioning (Combine).")
    embedding = chosen[0][0]
    if inversion.batch % len(embedding):
        raise ValueError(f"The INVERSION holds {inversion.batch} pictures, the CONDITIONING {len(embedding)} prompts: "
                         "give one prompt for all, or one a picture.")
    return repeat_to_batch_size(embedding, inversion.batch)
