"""DDIM Invert and Replay Inversion."""
import time

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from ..host.sampling import Replayed, Solver, check_family, fingerprint, patches, sample, schedule, split_at
from ..host.session import attach, log, require_plain
from ..inversion import ddim
from ..inversion.trajectory import Inversion, check_schedule

InversionType = io.Custom("INVERSION")
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
    channels = model.get_model_object("latent_format").latent_channels
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


class PalimpsestDDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDDIMInvert", display_name="DDIM Invert", category="palimpsest/inversion",
            description="Follows the deterministic sampler backwards, from a picture to its noise (Song et al. 2021). "
                        "Runs without guidance (CFG 1), one model evaluation a step.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL before any Palimpsest editor; LoRA may be on it."),
                io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. A noise mask on it is ignored."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="Levels of the trajectory. More reconstruct better; the papers take 50."),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="ddim_uniform",
                               tooltip="The host's schedule. The papers' is ddim_uniform (leading spacing)."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="A schedule of your own, descending to 0. Wins over steps and scheduler."),
            ],
            outputs=[
                InversionType.Output(display_name="inversion"),
                io.Latent.Output(display_name="noise", tooltip="The noisiest latent. In KSampler Advanced: add_noise "
                                 "off, same scheduler and steps, CFG 1 to reconstruct. On flow models use Replay."),
                io.Sigmas.Output(display_name="sigmas"),
            ])

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, sigmas=None) -> io.NodeOutput:
        require_plain(model, "DDIM Invert")
        identity = fingerprint(model)
        x = source_latent(model, latent)
        conditioning = source_conditioning(source, len(x))
        scheduler = scheduler if sigmas is None else "own"
        sigmas = schedule(model, scheduler, steps) if sigmas is None else sigmas.float().cpu()
        check_schedule(sigmas)
        path = []

        def solve(*args, **kwargs):
            path[:] = ddim.invert(*args, flow=identity.prediction == "flow", **kwargs)
            return path[0]

        began = time.perf_counter()
        noise = sample(model, conditioning, x, sigmas, Solver(solve))
        inversion = Inversion(
            sigmas, tuple(z.cpu() for z in path), conditioning, identity,
            provenance={"steps": len(sigmas) - 1, "scheduler": scheduler, "evaluations": (len(sigmas) - 1) * len(x),
                        "seconds": time.perf_counter() - began, "patches": patches(model)})
        noise = noise.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(inversion, {"samples": noise}, sigmas)


class PalimpsestReplay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReplay", display_name="Replay Inversion", category="palimpsest/inversion",
            description="Samples from an inversion: the MODEL applies what it learned, the SAMPLER starts from the "
                        "LATENT exactly as it is. Connect all four to SamplerCustom or SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL the picture was inverted with, plain or with editors."),
                InversionType.Input("inversion"),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where sampling begins, as the host's percent of the full schedule. 0: from the "
                                       "noisiest level, as the papers do; later keeps more of the picture."),
                io.Sampler.Input("sampler", optional=True,
                                 tooltip="A solver from KSamplerSelect or a Sampler… node. Empty: the method's own "
                                         "reverse (euler for DDIM)."),
            ],
            outputs=[
                io.Model.Output(display_name="model"), io.Sampler.Output(display_name="sampler"),
                io.Sigmas.Output(display_name="sigmas"),
                io.Latent.Output(display_name="latent", tooltip="The source's latents where sampling starts."),
            ])

    @classmethod
    def execute(cls, model, inversion, start, sampler=None) -> io.NodeOutput:
        check_family(model, inversion)
        if inversion.theta:
            raise ValueError(f"The {inversion.method} INVERSION learned {', '.join(inversion.theta)}, which this "
                             "version of Replay cannot apply: update Palimpsest, or invert with DDIM Invert.")
        first = split_at(model, inversion.sigmas, start)
        sigmas = inversion.sigmas[first:]
        if len(sigmas) < 2:
            raise ValueError(f"Starting at {start:.0%} leaves no step of the inversion's {inversion.schedule}: choose "
                             "an earlier start (0 is the noisiest level).")
        solver = Solver(comfy.k_diffusion.sampling.sample_euler) if sampler is None else Solver.of(sampler)
        if solver.adds_noise:
            log.warning("The SAMPLER adds noise of its own: edits work, but reconstruction is not promised.")
        latent = model.model.process_latent_out(inversion.at(float(sigmas[0])))
        return io.NodeOutput(attach(model, Replayed(inversion)), solver, sigmas, {"samples": latent})


NODES = [PalimpsestDDIMInvert, PalimpsestReplay]
