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
            description="Inverts exactly by integrating every step in both directions (Zhang et al. 2023): Replay at "
                        "the same CFG and prompts returns the picture. One model evaluation a step, and one more.",
            inputs=[
                *inversion_inputs(10),
                io.Float.Input("gamma", default=bdia.GAMMA, min=0.1, max=1.0, step=0.01,
                               tooltip="How much of the last step's error the next one puts right. The paper takes 0.5 "
                                       "for 10 steps and 1.0 for 40: under 1 the noise grows as gamma^-steps, and "
                                       "edits suffer."),
                *guidance_inputs("Guidance of the inversion. The authors edit real pictures at 3; sample at the same "
                                 "value."), sigmas_input()],
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
