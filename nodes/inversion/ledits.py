"""LEDITS++ Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.ledits import METHOD
from ..search import aliases
from ..widgets import (
    guidance_inputs,
    inversion_inputs,
    inversion_outputs,
    last_residual_input,
    setting_input,
    sigmas_input,
)


class PalimpsestLEDITSInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLEDITSInvert", display_name="LEDITS++ Invert", category="palimpsest/inversion",
            description="Edit-friendly noise maps for a fast solver, second-order DPM-Solver++ (Brack et al. 2024). "
                        "Replay returns the picture (see last_residual). LEDITS++ on its MODEL edits it. The "
                        "paper's skip is Replay's start. Eps and v models.",
            **aliases("ledits inversion", "DPM solver inversion", "edit real photo", "fast inversion"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "seed", control_after_generate=True, tooltip=(
                    "Seed of the noise at each level. The picture returns with any seed.")),
                *guidance_inputs("Guidance of the inversion. Replay at the same value. Paper: 1 with an empty "
                                 "source prompt, 3.5 with a source prompt."),
                sigmas_input(), last_residual_input(METHOD),
            ],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative,
                                     seed=seed, last_residual=last_residual))
