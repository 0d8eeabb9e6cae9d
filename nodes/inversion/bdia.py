"""BDIA Invert."""
import math

from comfy_api.latest import io

from ...editing.inverting import invert, recorded_theta
from ...inversion import bdia
from ..checks import check_guidance
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, sigmas_input

EXPANSION = 24 * math.log10(2)  # the digits that a float32 latent resolves


class PalimpsestBDIAInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestBDIAInvert", display_name="BDIA Invert", category="palimpsest/inversion",
            description="Exact inversion that integrates every step in both directions (Zhang et al. 2023). Replay "
                        "with the same CFG and prompts returns the picture. One model evaluation per step, plus one.",
            inputs=[
                *inversion_inputs(10),
                io.Float.Input("gamma", default=bdia.GAMMA, min=0.1, max=1.0, step=0.01,
                               tooltip="Share of each step's error that the next step corrects. Below 1 the noise "
                                       "grows as gamma^-steps, and edits suffer. Paper: 0.5 for 10 steps, 1.0 for "
                                       "40."),
                *guidance_inputs("Guidance of the inversion. Sample at the same value. Authors: 3 for real pictures."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, gamma, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("BDIA Invert", cfg, negative)
        count = steps if sigmas is None else len(sigmas) - 1
        if -count * math.log10(gamma) > EXPANSION:
            raise ValueError(f"With gamma {gamma:g}, {count} steps of inversion multiply what each step misses by "
                             f"10^{-count * math.log10(gamma):.0f}, more than a latent resolves: raise gamma (1.0 from "
                             "40 steps on), or take fewer steps (10 at 0.5).")

        def solve(*args, **kwargs):
            path, offsets = bdia.invert(*args, gamma=gamma, **kwargs)
            return path, {"offset": recorded_theta(offsets)}
        return invert("BDIA Invert", "BDIA", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative,
                      gamma=gamma,
                      guidance=cfg)
