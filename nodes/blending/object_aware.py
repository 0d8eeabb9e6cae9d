"""Object-Aware Blend."""
from comfy_api.latest import io

from ...blending.object_aware import ObjectAware
from ...editing.masks import latent_mask
from ...editing.run import attach
from ..checks import check_trajectory
from ..search import aliases
from ..widgets import InversionType


class PalimpsestObjectAwareBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestObjectAwareBlend", display_name="Object-Aware Blend", category="palimpsest/blending",
            description="Edits one object from its own step on (OIR, Yang et al. 2024). Before that step its area "
                        "keeps the source. Outside all areas the source stays exact. Chain one node per object.",
            **aliases("OIR", "edit several objects", "multi object edit", "object by object", "change two objects"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Mask.Input("mask", tooltip="1 where this object is and may change. Soft values blend."),
                io.Float.Input("start", default=0.4, min=0.0, max=0.99, step=0.01,
                               tooltip="Share of the schedule where this object's edit begins. 0 to 0.3 for a new "
                                       "shape, 0.5 to 0.7 for a colour or texture. The paper searches it for each "
                                       "object."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, mask, start) -> io.NodeOutput:
        check_trajectory(model, inversion, "Object-Aware Blend")
        return io.NodeOutput(attach(model, ObjectAware(inversion, latent_mask(mask, tuple(inversion.shape[-2:])),
                                                       start)))
