"""DreamBooth: all weights, and class-prior preservation."""
from comfy_api.latest import io

from ...concept.dreambooth import AllWeights
from ...editing.concepts import Prior
from ..search import aliases
from .widgets import (
    ConceptImagesType,
    ObjectiveType,
    TrainableType,
    added,
    more_input,
    rate_input,
    text_encoder_input,
)


class PalimpsestLearnAll(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnAll", display_name="DreamBooth (All Weights)", category="palimpsest/concept",
            **aliases("dreambooth", "fine-tune all", "train checkpoint", "my face", "my dog"),
            description="Lets a concept be learned in all weights of the network (Ruiz et al. 2022). The most faithful "
                        "way, with the largest file and the most memory. Add Prior Preservation.",
            inputs=[rate_input(5e-6, "diffusers: 5e-6, with the text encoder 2e-6. The miniature: 2e-4."),
                    text_encoder_input(), more_input()],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, lr, text_encoder, more=None) -> io.NodeOutput:
        return added(AllWeights(lr, text_encoder), more)


class PalimpsestPriorPreservation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPriorPreservation", display_name="Prior Preservation", category="palimpsest/concept",
            **aliases("regularization images", "regularisation", "class images", "language drift", "forgetting"),
            description="Pictures of the class are learned along with the concept, so that 'a dog' still means any dog "
                        "(DreamBooth, Ruiz et al. 2022).",
            inputs=[
                ConceptImagesType.Input("class_images", tooltip="From Class Images. The model made them before it "
                                                                "learned."),
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.05, tooltip=(
                    "What their loss counts beside the concept's. Paper: 1.")),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, class_images, weight) -> io.NodeOutput:
        return io.NodeOutput((Prior(class_images, weight),))
