"""LEDITS++."""
from comfy_api.latest import io

from ...editing.editor import editor_of
from ...editing.run import attach
from ...editing.word_maps import nearest_resolution, word_layers_of
from ...guidance.ledits import LEDITS, Grounded
from ...host.network import require_words
from ...host.tokens import encode, tokenize_rows
from ..checks import check_concept
from ..search import aliases
from ..widgets import concept_inputs


class PalimpsestLEDITS(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLEDITS", display_name="LEDITS++", category="palimpsest/guidance",
            description="Adds a concept to a picture, or removes it, where its words' attention and its guidance agree "
                        "(Brack et al. 2024). Made for LEDITS++ Invert. Sample with the prompt and CFG of the "
                        "inversion. Chain one node per concept.",
            **aliases("ledits", "edit real photo", "add glasses", "add smile", "remove concept", "add object to photo",
                      "concept slider", "semantic guidance of a photo"),
            inputs=concept_inputs(
                io.Clip.Input("clip"),
                io.String.Input("concept", default="", tooltip="What to add or remove: \"glasses\", \"a red hat\"."),
                scale=5.0, warmup=0.0, threshold=0.9),
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, clip, concept, direction, scale, warmup, cooldown, threshold) -> io.NodeOutput:
        check_concept("LEDITS++", scale, warmup, cooldown)
        require_words(model, "LEDITS++", "use SEGA Guidance with momentum 0, which needs no words' attention")
        tokens = tokenize_rows(clip, [concept])
        if not tokens[0].words:
            raise ValueError("LEDITS++ looks for its concept's words in the picture, but the concept is empty: write "
                             "what to add or remove.")
        before = editor_of(model, LEDITS)
        added = Grounded(encode(clip, tokens), -scale if direction == "remove" else scale, warmup, cooldown, threshold,
                         tokens=tokens)
        editor = LEDITS((*(before.concepts if before else ()), added), resolution=nearest_resolution(model, 0.25),
                        layers=word_layers_of(model))
        return io.NodeOutput(attach(model, editor, replacing=before))
