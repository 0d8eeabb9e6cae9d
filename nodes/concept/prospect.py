"""New Word in Stages: ProSpect."""
from comfy_api.latest import io

from ...concept.prospect import PromptSpectrum
from ..search import aliases
from .widgets import TrainableType, added, like_input, more_input, name_input, rate_input


class PalimpsestProSpect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestProSpect", display_name="New Word in Stages (ProSpect)",
            category="palimpsest/concept",
            **aliases("prompt spectrum", "style of one picture", "material transfer", "layout transfer", "attributes"),
            description="Lets one picture be learned as a new word that is another one in each of ten stages of "
                        "sampling (Zhang et al. 2023). Concept Prompt takes its layout, content or material alone.",
            inputs=[
                name_input(),
                like_input(),
                rate_input(5e-3, "The authors: 1e-4, of a small network that makes the vectors; 600 steps. The "
                                 "miniature: 5e-2."),
                more_input(),
            ],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, name, like, lr, more=None) -> io.NodeOutput:
        return added(PromptSpectrum(name.strip(), like.strip(), 1, lr), more)
