"""Free-Prompt Edit."""
from comfy_api.latest import io

from ...attention.free_prompt import SelfAttentionMaps
from ...editing.layers import coarse
from ...editing.run import attach
from ...host.network import require_attention
from ...host.sampling import check_family
from ..checks import check_span
from ..search import aliases
from ..widgets import COARSE, InversionType, layers_input, layers_of, share_input


class PalimpsestFreePromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFreePromptEdit", display_name="Free-Prompt Edit", category="palimpsest/attention",
            description="FPE keeps the source's geometry with its self-attention maps alone. The source prompt may be "
                        "empty.",
            **aliases("FPE", "keep geometry", "keep structure", "edit without source prompt",
                      "replace self attention maps", "controlnet without model", "change texture or material"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("start", 0.0, "Share of the schedule where map replacement begins. Paper: 0."),
                share_input("end", 0.8, "Share where it ends. Higher keeps shapes, lower frees them. Paper: 0.8."),
                layers_input(f"{COARSE}, on transformers all (ours, untuned)"),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, start, end, layers) -> io.NodeOutput:
        node = "Free-Prompt Edit"
        require_attention(model, node)
        check_family(model, inversion)
        check_span(node, start, end, "0 and 0.8")
        chosen = layers_of(layers, model, lambda unet: coarse(unet, 0.5))
        return io.NodeOutput(attach(model, SelfAttentionMaps(inversion, chosen, start, end)))
