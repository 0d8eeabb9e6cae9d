"""Noise Map Guidance."""
from comfy_api.latest import io

from ...editing.run import attach
from ...guidance.nmg import ROWS, NoiseMap
from ...host.sampling import check_family
from ..widgets import InversionType


class PalimpsestNoiseMapGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNoiseMapGuidance", display_name="Noise Map Guidance", category="palimpsest/guidance",
            description="Leads sampling back to the inverted latents at each step, place by place, against the drift "
                        "of CFG (NMG, Cho et al. 2024). In place of a learned null embedding; for Euler's steps.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("scale", default=3.05, min=0.01, max=100.0, step=0.01,
                               tooltip="How strongly each step is drawn to the source's next latent, of a mean over "
                                       "its values: the authors' grad_scale 5000 times guidance_noise_map 10, over the "
                                       "16384 values of 512 × 512 pixels, is 3.05. A latent of a quarter of them is "
                                       "held as well by a quarter of it."),
                io.Combo.Input("rows", options=list(ROWS), default="all", optional=True,
                               tooltip="Which rows of the batch are drawn: all, which holds the edit itself, or those "
                                       "with the source's prompt, the authors' choice, who never draw an edit. The "
                                       "editors' source never drifts and needs none."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, scale, rows="all") -> io.NodeOutput:
        check_family(model, inversion)
        if inversion.latents is None:
            raise ValueError(f"Noise Map Guidance leads to the source's latents, the {inversion.method} INVERSION has "
                             "none: invert with a method that keeps its trajectory, such as DDIM Invert.")
        return io.NodeOutput(attach(model, NoiseMap(inversion, scale, rows)))
