"""DreamArtist."""
from comfy_api.latest import io

from ...concept.dreamartist import ENDING, SCALE, PositiveNegative
from ...concept.textual_inversion import TextualInversion
from ..search import aliases
from .widgets import (
    ObjectiveType,
    TrainableType,
    like_input,
    more_input,
    rate_input,
)


class PalimpsestDreamArtist(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDreamArtist", display_name="New Word and Its Negative (DreamArtist)",
            category="palimpsest/concept",
            **aliases("one-shot", "negative embedding", "one picture", "style from one image", "textual inversion"),
            description="Learns one picture in two words, one for the prompt and one for the negative prompt (Dong et "
                        "al. 2022). Connect both outputs to Learn Concept.",
            inputs=[
                io.String.Input("name", default="my-thing", tooltip=(
                    "The word's name. Letters, digits, _ and -. In prompts: embedding:NAME, in negative prompts: "
                    f"embedding:NAME{ENDING}.")),
                like_input(),
                io.Int.Input("vectors", default=3, min=1, max=64, tooltip=(
                    "Of the word in the prompt. A multiple of the tokens of 'like'. Authors: 3.")),
                io.Int.Input("negative_vectors", default=3, min=1, max=64, tooltip=(
                    f"Of the word in the negative prompt, NAME{ENDING}. Authors: 3 for a thing, 5 for a style.")),
                rate_input(5e-3, "Authors: 2.5e-3 to 5e-3. The miniature: 5e-2."),
                io.Float.Input("scale", default=SCALE, min=1.01, max=100.0, step=0.1, tooltip=(
                    "The guidance under which they learn. Sample at about as much. Authors: 3 to 5.")),
                more_input(),
                ObjectiveType.Input("more_objectives", optional=True, tooltip="What else is asked of the same run."),
            ],
            outputs=[TrainableType.Output(display_name="trainable"), ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, name, like, vectors, negative_vectors, lr, scale, more=None,
                more_objectives=None) -> io.NodeOutput:
        other = name.strip() + ENDING
        words = (TextualInversion(name.strip(), like.strip(), vectors, lr),
                 TextualInversion(other, like.strip(), negative_vectors, lr))
        return io.NodeOutput((*(more or ()), *words),
                             (*(more_objectives or ()), PositiveNegative(f"embedding:{other}", scale)))
