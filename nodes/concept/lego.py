"""Lego's context loss."""
from comfy_api.latest import io

from ...concept.lego import TEMPERATURE, WEIGHT, ContextLoss
from ..search import aliases
from .widgets import ObjectiveType, more_objectives_input


class PalimpsestLego(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLego", display_name="Concept Beyond Looks (Lego)", category="palimpsest/concept",
            **aliases("action", "adjective", "verb", "pose", "state", "disentangle", "personalized concept"),
            description="Lets a new word learn what a thing does or what happens to it, and not the thing (Motamed et "
                        "al. 2023). For two New Words, one of the thing and one of the concept, named in the captions.",
            inputs=[
                io.String.Input("name", default="my-state", tooltip=(
                    "The concept's word, as its New Word is called. The thing has a New Word of its own.")),
                io.String.Input("near", default="", tooltip=(
                    "Known words that tell the concept: 'frozen icy'. They draw it.")),
                io.String.Input("far", default="", tooltip=(
                    "Known words that mean the opposite, or name the thing: 'melted warm cat'. They keep it away.")),
                io.Float.Input("weight", default=WEIGHT, min=0.0, max=100.0, step=0.001, round=0.0001, tooltip=(
                    "What it counts beside the picture's loss. Higher follows the known words more and the pictures "
                    "less. ReVersion: 0.01.")),
                io.Float.Input("temperature", default=TEMPERATURE, min=0.001, max=100.0, step=0.01, round=0.001,
                               tooltip="Lower looks at the nearest words alone. ReVersion: 0.07."),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, name, near, far, weight, temperature, more=None) -> io.NodeOutput:
        return io.NodeOutput((*(more or ()), ContextLoss(
            name.strip(), *(" ".join(text.replace(",", " ").split()) for text in (near, far)), weight, temperature)))
