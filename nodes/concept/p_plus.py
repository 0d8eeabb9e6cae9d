"""New Word in Layers: Extended Textual Inversion."""
from comfy_api.latest import io

from ...concept.p_plus import ExtendedTextualInversion
from ..search import aliases
from .widgets import TrainableType, added, like_input, more_input, name_input, rate_input


class PalimpsestPPlus(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPPlus", display_name="New Word in Layers (P+)", category="palimpsest/concept",
            **aliases("extended textual inversion", "XTI", "P+", "per layer embedding", "style mixing"),
            description="Lets a concept be learned as a new word that is another one in each layer of the U-Net "
                        "(Voynov et al. 2023). It learns faster and holds more than one vector. Concept Prompt "
                        "writes it.",
            inputs=[
                name_input(),
                like_input(),
                rate_input(5e-3, "Paper: 5e-3, at a batch of 8 for 500 steps. The miniature: 5e-2."),
                more_input(),
            ],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, name, like, lr, more=None) -> io.NodeOutput:
        return added(ExtendedTextualInversion(name.strip(), like.strip(), 1, lr), more)
