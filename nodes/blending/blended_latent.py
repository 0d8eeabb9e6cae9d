"""Blended Latent."""
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ...blending.blended_latent import ShrinkingBlend, needs_mask, shrinking
from ...editing.masks import grown, latent_mask
from ...editing.run import attach
from ..checks import check_trajectory
from ..search import aliases
from ..widgets import InversionType


class PalimpsestBlendedLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestBlendedLatent", display_name="Blended Latent", category="palimpsest/blending",
            description="Blended Latent Diffusion (Avrahami et al. 2023). The mask starts enlarged and shrinks to its "
                        "true size, so that small masks give an edit room to begin. With INVERSION and MASK the source "
                        "stays exact outside. Without them it shrinks the LATENT's own noise mask (Set Latent Noise "
                        "Mask).",
            **aliases("inpaint without model", "inpaint with any model", "blended diffusion", "small mask inpaint",
                      "shrinking mask", "differential mask", "generative fill"),
            inputs=[
                io.Model.Input("model"),
                io.Int.Input("grow", default=3, min=1, max=64,
                             tooltip="Latent cells (8 pixels on SD) by which the mask starts enlarged. It shrinks one "
                                     "cell at a time. Authors: 3."),
                io.Float.Input("end", default=0.75, min=0.01, max=0.99, step=0.01,
                               tooltip="Share of the schedule where the mask reaches its true size. Authors: 0.75."),
                InversionType.Input("inversion", optional=True, tooltip=(
                    "With a MASK: this picture is restored outside it.")),
                io.Mask.Input("mask", optional=True, tooltip="With an INVERSION: 1 where the picture may change. Soft "
                                                             "values blend."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, grow, end, inversion=None, mask=None) -> io.NodeOutput:
        if (inversion is None) != (mask is None):
            has, lacks = ("a MASK", "INVERSION") if inversion is None else ("an INVERSION", "MASK")
            raise ValueError(f"Blended Latent has {has} but no {lacks}: connect both, or neither to use the LATENT's "
                             "own noise mask.")
        if inversion is None:
            m = model.clone()
            m.set_model_denoise_mask_function(shrinking(grow, end, model.model_options.get("denoise_mask_function")))
            m.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "palimpsest.noise_mask", needs_mask)
            return io.NodeOutput(m)
        check_trajectory(model, inversion, "Blended Latent")
        cells = latent_mask(mask, tuple(inversion.shape[-2:]))
        return io.NodeOutput(attach(model, ShrinkingBlend(inversion, tuple(grown(cells, n) for n in range(grow + 1)),
                                                          end)))
