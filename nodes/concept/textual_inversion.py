"""New Word: Textual Inversion."""
from comfy_api.latest import io

from ...concept.textual_inversion import TextualInversion
from ..search import aliases
from .widgets import TrainableType, added, more_input, rate_input


class PalimpsestNewWord(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNewWord", display_name="New Word (Textual Inversion)", category="palimpsest/concept",
            **aliases("train embedding", "textual inversion", "learn a word", "token", "concept"),
            description="Lets a concept be learned as a new word of the text encoder (Gal et al. 2022). The model "
                        "stays as it is. Write embedding:NAME in any prompt.",
            inputs=[
                io.String.Input("name", default="my-thing", tooltip=(
                    "The word's name. Letters, digits, _ and -. In prompts: embedding:NAME.")),
                io.String.Input("like", default="", tooltip=(
                    "What it roughly is, in a word that the model knows. Its learning starts there. Paper: one coarse "
                    "word, such as 'sculpture' or 'cat'.")),
                io.Int.Input("vectors", default=1, min=1, max=64, tooltip=(
                    "Number of vectors. More hold more details and can be edited less. Paper: 1.")),
                rate_input(5e-4, "diffusers: 5e-4. Paper: 5e-3, times batch and devices."),
                more_input(),
            ],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, name, like, vectors, lr, more=None) -> io.NodeOutput:
        return added(TextualInversion(name.strip(), like.strip(), vectors, lr), more)
