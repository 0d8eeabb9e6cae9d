"""Inversions that return the picture exactly: EDICT, BDIA, Direct, edit-friendly DDPM and CycleDiffusion."""
import dataclasses
import math

import torch
from comfy_api.latest import io

from ..host.reference import levels_together
from ..host.sampling import prediction_type
from ..host.session import rows_may_mix
from ..inversion import bdia, cycle_diffusion, ddim, ddpm, direct, edict
from ..inversion.trajectory import Theta
from .runner import inputs, invert, outputs, own_sigmas

ROWS, CELLS = 8, 2 ** 15  # of one forward that several levels share: two rows of SDXL's 1024 px, which the host makes room for
EXPANSION = 24 * math.log10(2)  # the digits that a float32 latent resolves


def guidance(paper, default=1.0):
    """The CFG of the inversion and its negative."""
    return [
        io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, tooltip=paper),
        io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt of that guidance (the papers': an empty "
                                                                 "one). Not used at CFG 1."),
    ]


def seeded(eta):
    return [
        io.Float.Input("eta", default=eta, min=0.01, max=1.0, step=0.01,
                       tooltip=f"Share of DDPM's noise in each step; 1 is DDPM, towards 0 it is DDIM. The paper takes {eta:g}."),
        io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                     tooltip="Of the noise the levels are drawn with; the picture comes back with any."),
    ]


def last_residual():
    return io.Combo.Input("last_residual", options=["auto", "keep", "zero"], default="auto", optional=True, tooltip=(
        "What the last step misses of the picture. keep adds it, so that the picture returns exactly; in few steps it holds "
        "details of the source that every edit then shows. zero leaves it out (the paper's code), which costs the exact return. "
        "auto: zero where the last level is over sigma 0.1, else keep."))


def check_guidance(name, cfg, negative):
    if cfg != 1 and negative is None:
        raise ValueError(f"{name} has CFG {cfg:g} and no negative CONDITIONING: connect one (an empty prompt), or set cfg to 1.")


def check_stochastic(name, model):
    if prediction_type(model) == "flow":
        raise ValueError(f"{name} reads the noise maps of a DDPM chain, this {type(model.model).__name__} MODEL predicts by "
                         "flow and has none: use DDIM Invert or Direct Invert, or an eps or v model (SD1.x, SD2.x, SDXL).")


def stacked(tensors, axis="step"):
    return Theta(torch.stack([t.float().cpu() for t in tensors]), axis, "step")


def together(model, latent, source):
    """How many levels may share a forward."""
    samples = latent["samples"]
    return levels_together(len(samples), samples.shape[-2:], ROWS, CELLS) if rows_may_mix(model, source) else 1


class PalimpsestEDICTInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestEDICTInvert", display_name="EDICT Invert", category="palimpsest/inversion",
            description="Inverts exactly with two coupled latents (Wallace et al. 2023): Replay at the same CFG and prompts "
                        "returns the picture. Two model evaluations a step, here and in Replay.",
            inputs=[
                *inputs(),
                io.Float.Input("p", default=edict.P, min=0.5, max=1.0, step=0.01,
                               tooltip="How far the two latents keep apart when they are mixed at each step. The paper takes "
                                       f"{edict.P}; lower is steadier and less exact, 1 never mixes."),
                *guidance("Guidance of the inversion. The paper edits real pictures at 3; sample at the same value."), own_sigmas()],
            outputs=outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, p, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("EDICT Invert", cfg, negative)

        def solve(*args, **kwargs):
            pairs = edict.invert(*args, p=p, **kwargs)
            return [x for x, _ in pairs], {"y_minus_x": stacked([y - x for x, y in pairs], "level")}
        return invert("EDICT Invert", "EDICT", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative, p=p, guidance=cfg)


class PalimpsestBDIAInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestBDIAInvert", display_name="BDIA Invert", category="palimpsest/inversion",
            description="Inverts exactly by integrating every step in both directions (Zhang et al. 2023): Replay at the same "
                        "CFG and prompts returns the picture. One model evaluation a step, and one more.",
            inputs=[
                *inputs(10),
                io.Float.Input("gamma", default=bdia.GAMMA, min=0.1, max=1.0, step=0.01,
                               tooltip="How much of the last step's error the next one puts right. The paper takes 0.5 for 10 "
                                       "steps and 1.0 for 40: under 1 the noise grows as gamma^-steps, and edits suffer."),
                *guidance("Guidance of the inversion. The authors edit real pictures at 3; sample at the same value."), own_sigmas()],
            outputs=outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, gamma, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("BDIA Invert", cfg, negative)
        count = steps if sigmas is None else len(sigmas) - 1
        if -count * math.log10(gamma) > EXPANSION:
            raise ValueError(f"With gamma {gamma:g}, {count} steps of inversion multiply what each step misses by "
                             f"10^{-count * math.log10(gamma):.0f}, more than a latent resolves: raise gamma (1.0 from 40 steps on), or take "
                             "fewer steps (10 at 0.5).")

        def solve(*args, **kwargs):
            path, offsets = bdia.invert(*args, gamma=gamma, **kwargs)
            return path, {"offset": stacked(offsets)}
        return invert("BDIA Invert", "BDIA", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative, gamma=gamma,
                      guidance=cfg)


class PalimpsestDirectInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDirectInvert", display_name="Direct Invert (PnP Inversion)", category="palimpsest/inversion",
            description="DDIM inversion, and for each step the offset that leads sampling at the given CFG back to the picture "
                        "(Ju et al. 2024). With an editor it equals DDIM Invert, whose source branch never drifts; the offsets "
                        "serve Replay of the source prompt, at the CFG and with the negative they were recorded with.",
            inputs=[
                *inputs(),
                io.Float.Input("scale", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of each step's distance to the source that its offset puts right. The paper "
                                       "takes 1, which returns the picture; 0 is plain DDIM."),
                *guidance("The CFG of the replay that the offsets are recorded for; the inversion itself runs at 1. The paper "
                          "edits at 7.5."), own_sigmas()],
            outputs=outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, scale, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("Direct Invert", cfg, negative)

        def follow(*args, **kwargs):
            return ddim.invert(*args, **kwargs), {}

        def record(model, x, *args, flow, data, **kwargs):
            path = [z.to(x) for z in inversion.latents]
            return path, {"offset": stacked(direct.record(model, path, *args, scale=scale, **kwargs))}

        common = "Direct Invert", "Direct", model, source, latent, steps, scheduler, sigmas
        inversion = invert(*common, follow).result[0]
        found, noise, sigmas = invert(*common, record, cfg, negative, scale=scale, guidance=cfg).result
        spent = {k: inversion.provenance[k] + found.provenance[k] for k in ("evaluations", "seconds")}
        return io.NodeOutput(dataclasses.replace(found, provenance={**found.provenance, **spent}), noise, sigmas)


class PalimpsestDDPMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDDPMInvert", display_name="DDPM Invert (edit-friendly)", category="palimpsest/inversion",
            description="Noises the picture to every level by itself and reads off the noise maps that lead DDPM sampling "
                        "through them (Huberman-Spiegelglas et al. 2024). Replay returns the picture (see last_residual); with "
                        "another prompt it edits. The paper's skip is Replay's start (skip 36 of 100 steps: 0.36). Eps and v models.",
            inputs=[*inputs(100), *seeded(1.0),
                    *guidance("Guidance of the inversion. The paper takes 3.5 with an empty negative, and 15 to sample the target."),
                    own_sigmas(), last_residual()],
            outputs=outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        check_stochastic("DDPM Invert", model)
        check_guidance("DDPM Invert", cfg, negative)
        levels = together(model, latent, source) if cfg == 1 else 1  # guidance magnifies the rounding of a shared forward

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = ddpm.independent_path(x, sigmas, seed)
            path, maps = ddpm.noise_maps(model, path, sigmas, eta=eta, together=levels, **kwargs)
            return path, {"z": stacked(ddpm.last_residual(maps, sigmas, last_residual))}
        return invert("DDPM Invert", "DDPM", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative, "independent",
                      eta=eta, seed=seed, guidance=cfg)


class PalimpsestCycleDiffusionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestCycleDiffusionInvert", display_name="CycleDiffusion Invert", category="palimpsest/inversion",
            description="DPM-Encoder: draws the levels from the picture's own posterior and reads off the noise that leads "
                        "sampling through them (Wu & De la Torre 2023). Runs without guidance, as the paper. Replay returns "
                        "the picture; with the target prompt at CFG 1 to 5 it is CycleDiffusion. Eps and v models.",
            inputs=[*inputs(100), *seeded(0.1), own_sigmas()], outputs=outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, sigmas=None) -> io.NodeOutput:
        check_stochastic("CycleDiffusion Invert", model)
        levels = together(model, latent, source)

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = cycle_diffusion.posterior_path(x, sigmas, seed, eta)
            path, maps = ddpm.noise_maps(model, path, sigmas, eta=eta, together=levels, **kwargs)
            return path, {"z": stacked(maps)}
        return invert("CycleDiffusion Invert", "CycleDiffusion", model, source, latent, steps, scheduler, sigmas, solve,
                      trajectory="independent", eta=eta, seed=seed)


NODES = [PalimpsestEDICTInvert, PalimpsestBDIAInvert, PalimpsestDirectInvert, PalimpsestDDPMInvert, PalimpsestCycleDiffusionInvert]
