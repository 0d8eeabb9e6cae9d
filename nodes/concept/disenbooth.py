"""DisenBooth: a subject apart from what else its pictures show."""
from comfy_api.latest import io

from ...concept.disenbooth import APART, RATE, WEAK, Disentangled
from ..search import aliases
from .widgets import ObjectiveType, more_objectives_input, rate_input


class PalimpsestDisenBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDisenBooth", display_name="Apart from Its Pictures (DisenBooth)",
            category="palimpsest/concept",
            **aliases("disentangle", "background leaks", "pose leaks", "overfitting", "CLIP vision", "identity"),
            description="Gives what each picture shows beside the subject, such as the background and the pose, a "
                        "place of its own while it learns, so that the subject's prompt does not take it in (Chen et "
                        "al. 2024). For SD1.x and SD2.x.",
            inputs=[
                io.ClipVisionOutput.Input("clip_vision_output", tooltip=(
                    "From CLIP Vision Encode, of the same pictures in the same order as Concept Images. SD1.x: CLIP "
                    "ViT-L/14, SD2.x: CLIP ViT-H/14.")),
                io.Float.Input("weak_weight", default=WEAK, min=0.0, max=100.0, step=0.001, round=0.0001, tooltip=(
                    "What it counts that the prompt alone shows the picture. Higher takes more of the subject in, and "
                    "more of all else. Paper: 0.01.")),
                io.Float.Input("apart_weight", default=APART, min=0.0, max=100.0, step=0.001, round=0.0001, tooltip=(
                    "What it counts that the picture's own part is like the prompt. Higher keeps both further apart. "
                    "Paper: 0.001.")),
                rate_input(RATE, "Of the picture's own part. Authors: 1e-4, as of the LoRA."),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, clip_vision_output, weak_weight, apart_weight, lr, more=None) -> io.NodeOutput:
        found = clip_vision_output["image_embeds"].float().cpu().clone()
        return io.NodeOutput((*(more or ()), Disentangled(found, weak_weight, apart_weight, lr)))
