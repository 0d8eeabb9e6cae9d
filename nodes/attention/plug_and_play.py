"""Plug-and-Play Features."""
from comfy_api.latest import io

from ...attention.plug_and_play import ResidualFeatures, SelfAttentionMaps, after_first, second_block
from ...editing.layers import listed, parse_layers, roles
from ...editing.run import attach
from ...host.network import require_attention, require_unet
from ...host.sampling import check_family
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, null_input, share_input


class PalimpsestPlugAndPlay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPlugAndPlay", display_name="Plug-and-Play Features", category="palimpsest/attention",
            description="PnP keeps the layout with the source's residual features and self-attention. The target "
                        "prompt repaints it.",
            **aliases("PnP", "plug and play diffusion features", "restyle photo", "change style", "keep layout",
                      "repaint photo", "photo to painting", "photo to cartoon", "controlnet without model",
                      "feature injection"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("feature_end", 0.8, "The source's residual features are injected up to this share of the "
                                                "schedule. Paper: 0.8. On transformers: 0."),
                share_input("attention_end", 0.5, "Its self-attention maps are injected up to this share. Paper: 0.5."),
                io.String.Input("feature_layers", default="", tooltip=(
                    "Residual blocks, as in 'u1, u2'. Each is named after the transformer of the up section that "
                    "follows it. Empty: u1 (paper: decoder layer 4).")),
                layers_input("the up section without u0 (SD1.x and SD2.x: u1-8, the paper's 4 to 11; SDXL: u1-5), on "
                             "transformers the latter half of the last kind of block (ours, untuned)"),
                null_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, feature_end, attention_end, feature_layers, layers, null_too) -> io.NodeOutput:
        node = "Plug-and-Play Features"
        require_attention(model, node)
        if feature_end:
            require_unet(model, f"{node} with a feature_end of {feature_end:g}",
                         ", or set feature_end to 0, which leaves the edit of self-attention")
        check_family(model, inversion)
        if not feature_end and not attention_end:
            raise ValueError(f"{node} with feature_end and attention_end both 0 would change nothing: raise one "
                             "(paper: 0.8 and 0.5).")
        network = model.model.diffusion_model
        named, chosen = parse_layers(feature_layers, network), layers_of(layers, model, after_first)
        if "." in feature_layers or {p[0] for p in named} - {"output"}:
            raise ValueError(f"feature_layers is {feature_layers!r}, but residual features belong to whole blocks of "
                             f"the up section: write them as in 'u1' (this MODEL has {listed(network)}).")
        if feature_end:
            blocks = frozenset(p[1] for p in named) or second_block(network)
            model = attach(model, ResidualFeatures(inversion, blocks, feature_end, roles(null_too)))
        if attention_end:
            model = attach(model, SelfAttentionMaps(inversion, chosen, 0.0, attention_end, roles(null_too)))
        return io.NodeOutput(model)
