"""Concept Attention."""
import re

from comfy_api.latest import io

from ...attention.concept_attention import NAME, embedded, read_concepts
from ...host.network import require_text_blocks, text_blocks, word_layers
from ..checks import check_trajectory
from ..search import aliases
from ..widgets import AttentionType, InversionType, layers_input, layers_of


class PalimpsestConceptAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestConceptAttention", display_name=NAME, category="palimpsest/attention",
            description="Finds things in the picture by words that need not stand in its prompt, on Flux, SD3 and "
                        "their like. Sharper than Attention Store there.",
            **aliases("ConceptAttention", "concept heat map", "segment by text", "mask from text", "text to mask",
                      "flux mask", "flux segmentation", "saliency map", "mask of background"),
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                InversionType.Input("inversion"),
                io.String.Input("concepts", default="", tooltip=(
                    "Two or more, separated by commas, such as 'cat, background'. They share the picture out among "
                    "themselves, so name what is around the thing, too. Of a concept of several words the first "
                    "counts.")),
                layers_input("of two kinds of blocks the last fifth of the first (Flux: d15-18, paper), of one its "
                             "middle fifth. SD3's authors take all, 'd'"),
                io.Boolean.Input("normalise", default=False, tooltip=(
                    "Whether concepts are compared by direction alone. Off on Flux, on for SD3 (authors).")),
            ],
            outputs=[AttentionType.Output(display_name="ATTENTION", tooltip=(
                "For Attention Mask and Attention Heatmap, whose words are then the concepts."))])

    @classmethod
    def execute(cls, model, clip, inversion, concepts, layers, normalise) -> io.NodeOutput:
        require_text_blocks(model, NAME)
        check_trajectory(model, inversion, NAME)
        names = [name.strip() for name in re.split(r"[,\n]", concepts) if name.strip()]
        if len({name.lower() for name in names}) < max(2, len(names)):
            raise ValueError(f"{NAME} shares the picture out among two or more different concepts, and has "
                             f"{len(names)} ({', '.join(names) or 'none'}): write each once, with commas between, and "
                             "what is around them, as in 'cat, background'.")
        chosen = layers_of(layers, model, word_layers) & text_blocks(model.model.diffusion_model)
        if not chosen:
            raise ValueError(f"{NAME} compares outputs of blocks with two streams (d), and {layers!r} names none: "
                             "write some, such as 'd15-18', or nothing.")
        return io.NodeOutput(read_concepts(model, inversion, dict(zip(names, embedded(clip, names))), chosen,
                                           normalise))
