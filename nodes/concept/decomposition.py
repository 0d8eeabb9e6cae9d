"""Concept Decomposition."""
from comfy_api.latest import io

from ...concept.decomposition import ENDINGS, LIKE, SKEW, TwoAspects
from ...concept.textual_inversion import TextualInversion
from ..search import aliases
from .widgets import ObjectiveType, TrainableType, more_input, rate_input


class PalimpsestDecomposition(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDecomposition", display_name="Two New Words (Concept Decomposition)",
            category="palimpsest/concept",
            **aliases("inspiration tree", "split a concept", "aspects", "idea", "explore", "textual inversion"),
            description="Splits a concept into two aspects, a new word each, which together give its pictures (Vinker "
                        "et al. 2023). Connect both outputs to Learn Concept.",
            inputs=[
                io.String.Input("name", default="my-idea", tooltip=(
                    "The words' name. Letters, digits, _ and -. In prompts: "
                    f"embedding:NAME{ENDINGS[0]} and embedding:NAME{ENDINGS[1]}, alone or together.")),
                io.String.Input("like", default=LIKE, tooltip=(
                    "What both words begin as, a word of one token. Authors: object.")),
                rate_input(5e-4, "Authors: 5e-4."),
                io.Float.Input("noisier", default=SKEW, min=0.0, max=1.0, step=0.05, tooltip=(
                    "How much more often noisy levels are learned than clean ones. 0: as the model was trained. Paper: "
                    "0.5.")),
                more_input(),
                ObjectiveType.Input("more_objectives", optional=True, tooltip="What else is asked of the same run."),
            ],
            outputs=[TrainableType.Output(display_name="trainable"), ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, name, like, lr, noisier, more=None, more_objectives=None) -> io.NodeOutput:
        words = tuple(TextualInversion(name.strip() + ending, like.strip(), 1, lr) for ending in ENDINGS)
        reads = " ".join(f"embedding:{word.name}" for word in words)
        return io.NodeOutput((*(more or ()), *words), (*(more_objectives or ()), TwoAspects(reads, noisier)))
