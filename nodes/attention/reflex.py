"""Mid-Step Features: ReFlex."""
from comfy_api.latest import io

from ...attention.alignment import align
from ...attention.reflex import NAME, AdaptedAttention, MidStepFeatures, own_layers
from ...editing.layers import parse_layers, roles
from ...editing.run import attach
from ...host.branches import branches
from ...host.network import require_attention, require_words
from ..checks import check_source, check_trajectory
from ..search import aliases
from ..widgets import InversionType, PromptEditType, share_input

OWN = 0.16, 0.23, 0.34


class PalimpsestMidStepFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMidStepFeatures", display_name=f"{NAME} (ReFlex)", category="palimpsest/attention",
            description="ReFlex for Flux: the target's first steps take features and attention from the middle of the "
                        "source's inversion, and share part of that attention out anew for the new words.",
            **aliases("reflex", "rectified flow edit", "flux edit", "mid-step", "attention adaptation",
                      "change a word flux", "edit photo flux", "feature injection flux", "prompt to prompt flux"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("feature_end", OWN[0], (
                    "Share of the schedule until which blocks add what they add in the source. Authors: step 5 of 28; "
                    "7 (0.23) without prompt_edit. Needs Flux's blocks (Flux, Chroma, HunyuanVideo).")),
                share_input("self_end", OWN[1], (
                    "Share until which the picture looks itself up as the source does. Higher keeps shapes. Authors: "
                    "step 7 of 28; 12 (0.41) without prompt_edit.")),
                share_input("cross_end", OWN[2], (
                    "Share until which words that stay are looked up as in the source, and new ones text_scale times "
                    "as much. Used with prompt_edit. Authors: step 10 of 28.")),
                share_input("middle", 0.5, (
                    "Share of the schedule at whose level the source is read. Authors: step 14 of 28. 0 reads it at "
                    "the target's own level.")),
                io.Int.Input("top_k", default=20, min=1, max=4096, tooltip=(
                    "Of so many places that one looks up most, less one, the target decides how much each gets. Higher "
                    "lets shapes change. 1: the source's attention as it is. Authors: 20, tried from 10 to 60.")),
                io.Float.Input("text_scale", default=4.0, min=0.0, max=20.0, step=0.1, tooltip=(
                    "Factor on attention to new words, without prompt_edit to all words. Authors: 4.")),
                io.String.Input("feature_layers", default="", tooltip=(
                    "Blocks whose features are the source's, as in 'd13-18, s0'. Empty: these on Flux (authors), "
                    "elsewhere as large a part of all.")),
                io.String.Input("layers", default="", tooltip=(
                    "Blocks in which the picture looks itself up as the source does. With words feature_layers take "
                    "part too. Empty: s1-25 on Flux (authors), elsewhere as large a part of all.")),
                io.Boolean.Input("null_too", default=True, tooltip=(
                    "Whether a negative prompt's rows take the source's features too, as it is under that prompt. The "
                    "authors sample without one.")),
                PromptEditType.Input("prompt_edit", optional=True, tooltip=(
                    "Which words stay. Without it no word is told apart, and the source's prompt may be empty.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, feature_end, self_end, cross_end, middle, top_k, text_scale, feature_layers,
                layers, null_too, prompt_edit=None) -> io.NodeOutput:
        (require_words if prompt_edit else require_attention)(model, NAME)
        check_trajectory(model, inversion, NAME)
        if prompt_edit:
            check_source(inversion, prompt_edit, NAME)
        network = model.model.diffusion_model
        known, (features, maps) = branches(network), own_layers(network)
        named = parse_layers(feature_layers, network)
        if feature_end and named - known:
            raise ValueError(f"feature_layers is {feature_layers!r}, and {len(named - known)} of these blocks of "
                             f"{type(network).__name__} are not Flux's, whose features are known: leave it empty, or "
                             "set feature_end to 0.")
        features, maps = named or features, parse_layers(layers, network) or maps
        acting = features & known if feature_end else frozenset()
        if not (acting or self_end or prompt_edit and cross_end):
            raise ValueError(f"{NAME} with its ends at {feature_end:g}, {self_end:g} and {cross_end:g} would change "
                             f"nothing on this MODEL: raise self_end (authors: {OWN[1]:g}).")
        mine = roles(null_too)
        pairs = tuple(align(p.source, p.target, "refine") for p in prompt_edit.pairs) if prompt_edit else ()
        if acting:
            model = attach(model, MidStepFeatures(inversion, acting, feature_end, middle, mine))
        if self_end or pairs and cross_end:
            model = attach(model, AdaptedAttention(inversion, pairs, maps, features | maps, self_end, cross_end,
                                                   top_k, text_scale, middle, mine))
        return io.NodeOutput(model)
