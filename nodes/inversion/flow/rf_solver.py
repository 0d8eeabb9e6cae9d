"""RF-Solver Invert."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.rf_solver import METHOD
from ...search import aliases
from ...widgets import OTHER_FLOWS, inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestRFSolverInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRFSolverInvert", display_name="RF-Solver Invert", category="palimpsest/inversion",
            description="Inversion for flow models (Flux, SD3, Qwen-Image) by second-order steps, there and back (Wang "
                        "et al. 2025). Two model evaluations a step. No guidance (CFG 1). Replay's own sampler brings "
                        "the picture back.",
            **aliases("RF edit", "rf solver", "rectified flow inversion", "flux inversion", "midpoint inversion",
                      "second order inversion", "unsampler for flux"),
            inputs=[
                *inversion_inputs(METHOD, "Number of steps, of two evaluations each. More steps reconstruct better. "
                                          "Paper's code, on Flux: 25." + OTHER_FLOWS, "Paper, on Flux: simple."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas))
