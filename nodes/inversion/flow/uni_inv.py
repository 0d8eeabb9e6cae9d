"""Uni-Inv."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.uni_inv import METHOD
from ...search import aliases
from ...widgets import inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestUniInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestUniInvert", display_name="Uni-Inv", category="palimpsest/inversion",
            description="Inversion for flow models (SD3, Flux). The last step's velocity predicts where each step "
                        "leads (UniEdit-Flow, Jiao et al. 2025). No guidance (CFG 1). One model evaluation per step.",
            **aliases("RF inversion", "rectified flow inversion", "flow inversion", "flux inversion", "SD3 inversion",
                      "qwen image inversion", "unsampler for flux", "uniedit flow", "image to noise"),
            inputs=[
                *inversion_inputs(METHOD, (
                    "Number of steps. More steps reconstruct better. Paper: 15 to edit, 30 (Flux) and 50 (SD3) to "
                    "reconstruct. Other flow models: 15 (ours, untuned)."), "Paper, on Flux: simple."),
                sigmas_input()],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas))
