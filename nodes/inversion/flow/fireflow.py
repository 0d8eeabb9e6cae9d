"""FireFlow Invert."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.fireflow import METHOD
from ...search import aliases
from ...widgets import OTHER_FLOWS, inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestFireFlowInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFireFlowInvert", display_name="FireFlow Invert", category="palimpsest/inversion",
            description="Inversion for flow models (Flux, SD3, Qwen-Image) by second-order steps at the price of "
                        "first-order ones: each begins with the last one's velocity (Deng et al. 2025). One model "
                        "evaluation a step and one more. No guidance (CFG 1). Replay's own sampler brings the picture "
                        "back.",
            **aliases("fire flow", "fast flux inversion", "rectified flow inversion", "flux inversion",
                      "few step inversion", "unsampler for flux"),
            inputs=[
                *inversion_inputs(METHOD, "Number of steps. More steps reconstruct better. Paper: 8, and 15 to keep "
                                          "more of the picture." + OTHER_FLOWS, "Paper, on Flux: simple."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas))
