"""Noise Map Guidance."""
from comfy_api.latest import io

from ...editing.run import attach
from ...guidance.nmg import ROWS, NoiseMap
from ...host.sampling import check_family
from ..search import aliases
from ..widgets import InversionType


class PalimpsestNoiseMapGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNoiseMapGuidance", display_name="Noise Map Guidance", category="palimpsest/guidance",
            description="Pulls each step back to the inverted latent, cell by cell, against the drift of CFG (NMG, Cho "
                        "et al. 2024). Replaces a learned null embedding. Needs Euler steps.",
            **aliases("NMG", "keep composition", "stay close to photo", "follow the inversion", "guided inversion"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("scale", default=3.05, min=0.01, max=100.0, step=0.01,
                               tooltip="How strongly each step is pulled to the source's next latent. Authors: "
                                       "grad_scale 5000 × guidance_noise_map 10 / 16384 values of 512 × 512 pixels = "
                                       "3.05. The loss is a mean over the values: a latent with a quarter of them "
                                       "needs a quarter of the scale."),
                io.Combo.Input("rows", options=list(ROWS), default="all", optional=True,
                               tooltip="Which rows of the batch are pulled. all also holds the edit itself. source "
                                       "pulls only rows with the source's prompt, as the authors do. The editors' own "
                                       "source branch never drifts and needs none."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, scale, rows="all") -> io.NodeOutput:
        check_family(model, inversion)
        if inversion.latents is None:
            raise ValueError(f"Noise Map Guidance needs the source's latents, but the {inversion.method} INVERSION "
                             "has none: invert with a method that keeps its trajectory, such as DDIM Invert.")
        return io.NodeOutput(attach(model, NoiseMap(inversion, scale, rows)))
