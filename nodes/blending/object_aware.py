"""Object-Aware Blend."""
from comfy_api.latest import io

from ...blending.object_aware import ObjectAware
from ...editing.masks import latent_mask
from ...editing.run import attach
from ..checks import check_trajectory
from ..widgets import InversionType


class PalimpsestObjectAwareBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestObjectAwareBlend", display_name="Object-Aware Blend", category="palimpsest/blending",
            description="One object and the step from which it is edited; chain one node an object (OIR, Yang et al. "
                        "2024). Until its step its place holds the source, and outside all places the source stays "
                        "exact.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Mask.Input("mask", tooltip="1 where this object is and its edit may write. Soft values blend."),
                io.Float.Input("start", default=0.4, min=0.0, max=0.99, step=0.01,
                               tooltip="Share of the schedule from which this object is edited. Early (0 to 0.3) for "
                                       "another shape, late (0.5 to 0.7) for a colour or a texture. The paper searches "
                                       "it for each object."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, mask, start) -> io.NodeOutput:
        check_trajectory(model, inversion, "Object-Aware Blend")
        return io.NodeOutput(attach(model, ObjectAware(inversion, latent_mask(mask, tuple(inversion.shape[-2:])),
                                                       start)))
