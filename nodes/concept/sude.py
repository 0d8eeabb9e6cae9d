"""SuDe: a subject that inherits from its class."""
from comfy_api.latest import io

from ...concept.sude import WEIGHT, Inheritance
from ..search import aliases
from .widgets import ObjectiveType, more_objectives_input


class PalimpsestSuDe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSuDe", display_name="Inherit from the Class (SuDe)", category="palimpsest/concept",
            **aliases("FaceChain-SuDe", "one photo", "attributes", "my dog running", "overfitting", "derived class"),
            description="Lets a subject inherit what its class can do, such as running or being wet, so that prompts "
                        "still change it after one picture was learned (Qiao et al. 2024).",
            inputs=[
                io.Float.Input("weight", default=WEIGHT, min=0.0, max=100.0, step=0.05, tooltip=(
                    "What it counts beside the picture's loss. Higher follows prompts more and the subject less. "
                    "Authors: 0.4 to 0.8.")),
                io.String.Input("noun", default="", tooltip=(
                    "What * reads as for the class. Empty: it is left out, so that 'a photo of a * dog' is 'a photo of "
                    "a dog'. Where * stands alone, write the noun here.")),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, weight, noun, more=None) -> io.NodeOutput:
        return io.NodeOutput((*(more or ()), Inheritance(noun.strip(), weight)))
