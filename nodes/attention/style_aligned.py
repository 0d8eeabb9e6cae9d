"""Style Aligned."""
from comfy_api.latest import io

from ...attention.style_aligned import ReferencePicture, ReferenceRow, SharedNorms, Sharing
from ...editing.layers import roles, self_attention_layers
from ...editing.run import attach
from ...host.network import group_norms, require_attention, turned
from ...host.sampling import check_family
from ..checks import check_span
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, null_input, share_input


def everywhere(unet) -> frozenset:
    return frozenset(p.address for p in self_attention_layers(unet))


class PalimpsestStyleAligned(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestStyleAligned", display_name="Style Aligned", category="palimpsest/attention",
            description="Samples in the style of an inverted picture, or of the batch's first row, by sharing "
                        "self-attention with it (Hertz et al. 2024).",
            **aliases("style aligned reference", "style transfer", "same style", "copy style of image",
                      "style reference", "shared attention", "ip adapter without model", "consistent style batch"),
            inputs=[
                io.Model.Input("model"),
                share_input("start", 0.0, "Share of the schedule where sharing begins. Paper: 0."),
                share_input("end", 1.0, "Share where it ends. Lower keeps less of the style. Paper: 1."),
                io.Float.Input("shift", default=0.69, min=-10.0, max=10.0, step=0.01, tooltip=(
                    "Added to the attention scores of the reference's tokens. Higher copies more of it, even content. "
                    "Paper: ln 2 = 0.69 with an INVERSION, 0 across a batch.")),
                io.Float.Input("scale", default=1.0, min=0.0, max=4.0, step=0.01, tooltip=(
                    "Factor on those scores. Paper: 1.")),
                io.Boolean.Input("normalise", default=True, tooltip=(
                    "Gives queries and keys the reference's mean and deviation (AdaIN). Without it, hardly any style "
                    "is shared. Paper: on. Transformers but SD3 and AuraFlow need it off.")),
                layers_input("all"),
                null_input(),
                InversionType.Input("inversion", optional=True, tooltip=(
                    "The picture that gives the style. Not connected: the first row of the batch is the reference.")),
                io.Boolean.Input("share_norms", default=True, optional=True, tooltip=(
                    "Computes group-norm statistics over both pictures, which shares contrast and colours. Paper: on, "
                    "but off across a batch on SDXL.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, start, end, shift, scale, normalise, layers, null_too, inversion=None,
                share_norms=True) -> io.NodeOutput:
        node = "Style Aligned"
        require_attention(model, node)
        network = model.model.diffusion_model
        if normalise and turned(network):
            raise ValueError(f"{node} with normalise gives queries and keys the reference's mean and deviation, and on "
                             f"this MODEL, {type(model.model).__name__}, each token's place has turned them: turn "
                             "normalise off.")
        check_span(node, start, end, "0 and 1")
        chosen = layers_of(layers, model, everywhere)
        share = Sharing(scale, shift, normalise)
        if inversion is not None:
            check_family(model, inversion)
        if share_norms and any(group_norms(network)):  # a transformer has none
            model = attach(model, SharedNorms(inversion, start, end, roles(null_too)))
        if inversion is None:
            return io.NodeOutput(attach(model, ReferenceRow(chosen, start, end, share, roles(null_too))))
        return io.NodeOutput(attach(model, ReferencePicture(inversion, chosen, start, end, roles(null_too),
                                                            share=share)))
