"""RF-Inversion Invert."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.rf_inversion import METHOD
from ...search import aliases
from ...widgets import OTHER_FLOWS, inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestRFInversionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRFInversionInvert", display_name="RF-Inversion Invert", category="palimpsest/inversion",
            description="Inversion for flow models (Flux, SD3, Qwen-Image) that is drawn to fresh noise on its way "
                        "(Rout et al. 2025), which leaves more room to edit. RF-Inversion Guide then draws the picture "
                        "back. No guidance (CFG 1). One model evaluation per step.",
            **aliases("RF inversion", "rf-inversion", "flux inversion", "controlled inversion", "stylize a photo",
                      "unsampler for flux"),
            inputs=[
                *inversion_inputs(METHOD, "Number of steps. Paper, on Flux: 28." + OTHER_FLOWS,
                                  "Paper, on Flux: simple."),
                setting_input(METHOD, "gamma", step=0.01, tooltip=(
                    "How far the way is drawn to fresh noise. 0 is DDIM Invert, 1 is the picture noised. Higher edits "
                    "more. Paper: 0.5.")),
                setting_input(METHOD, "seed", control_after_generate=True, tooltip="Seed of the fresh noise."),
                sigmas_input()],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, gamma, seed, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, gamma=gamma, seed=seed))
