"""Extended Attention: Add-it."""
from comfy_api.latest import io

from ...attention.add_it import NAME, ExtendedAttention
from ...editing.layers import roles, self_attention_layers
from ...editing.run import attach
from ...host.network import require_attention
from ...host.sampling import check_family
from ..checks import check_span
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, share_input


def everywhere(network) -> frozenset:
    return frozenset(p.address for p in self_attention_layers(network))


class PalimpsestExtendedAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestExtendedAttention", display_name=f"{NAME} (Add-it)", category="palimpsest/attention",
            description="The target looks up the source picture beside its own tokens while it is sampled from new "
                        "noise, so that an object can be added to the scene (Add-it).",
            **aliases("add-it", "addit", "add object", "add an object", "insert object", "object insertion",
                      "put something into the picture", "extended self-attention", "flux add object"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("weight", default=1.05, min=0.5, max=2.0, step=0.01, tooltip=(
                    "Gamma, the factor on the target's own keys. Higher follows the prompt more, lower keeps more of "
                    "the source. Authors: 1.05 on a generated picture, 1.1 on a photo.")),
                share_input("start", 0.0, "Share of the schedule where it begins. Paper: 0."),
                share_input("end", 0.68, "Share where it ends. Higher keeps more detail. Paper: step 20 of 30."),
                share_input("double_end", 0.35, "Share where it ends in double blocks (Flux: d0-18). Paper: step 10 "
                                                "of 30."),
                layers_input("all"),
                io.Boolean.Input("null_too", default=True, tooltip=(
                    "Whether a negative prompt's rows look up the source too, as it is under that prompt. The paper "
                    "samples without one.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, weight, start, end, double_end, layers, null_too) -> io.NodeOutput:
        require_attention(model, NAME)
        check_family(model, inversion)
        ends = {at: double_end if at[0] == "double" else end for at in layers_of(layers, model, everywhere)}
        check_span(NAME, start, max(ends.values()), "0 and 0.68")
        return io.NodeOutput(attach(model, ExtendedAttention(inversion, ends, start, weight, roles(null_too))))
