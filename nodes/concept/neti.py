"""New Word in Space and Time: NeTI."""
from comfy_api.latest import io

from ...concept.neti import NeuralSpaceTime
from ..search import aliases
from .widgets import TrainableType, added, like_input, more_input, name_input, rate_input


class PalimpsestNeTI(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNeTI", display_name="New Word in Space and Time (NeTI)", category="palimpsest/concept",
            **aliases("neural textual inversion", "space-time", "textual bypass", "implicit word", "NeTI"),
            description="Lets a concept be learned by a small network that gives a new word for each layer of the "
                        "U-Net and each stage of sampling (Alaluf et al. 2023). Concept Prompt writes it.",
            inputs=[
                name_input(),
                like_input(),
                rate_input(8e-3, "Of the small network. The authors: 1e-3, times their batch of 8; 1000 steps."),
                more_input(),
            ],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, name, like, lr, more=None) -> io.NodeOutput:
        return added(NeuralSpaceTime(name.strip(), like.strip(), 1, lr), more)
