"""SINE."""
from comfy_api.latest import io

from ...editing.editor import editor_of
from ...editing.run import attach
from ...guidance.sine import SINE
from ...host.hooks import weight_hooks
from ..checks import check_prompt_alone, check_span
from ..search import aliases


class PalimpsestSINEGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSINEGuidance", display_name="SINE", category="palimpsest/guidance",
            description="A model that learned one picture leads the first part of sampling, together with the target "
                        "prompt (Zhang et al. 2022). The rest follows the prompt alone. No inversion is needed.",
            **aliases("single image editing", "one picture", "edit one photo", "model-based guidance", "two models"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL as it was before it learned."),
                io.Conditioning.Input("expert", tooltip=(
                    "The prompt with which the picture was learned, from Concept on One Prompt.")),
                io.Float.Input("share", default=0.7, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Of the expert in the guided prediction, v. Higher keeps more of the picture. Paper: 0.7. The "
                    "authors' example: 0.4.")),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where the expert begins. Paper: 0."),
                io.Float.Input("end", default=0.6, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Share where it ends. Earlier lets the prompt change more. Paper: 0.6 (K = 400 of 1000).")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, expert, share, start, end) -> io.NodeOutput:
        check_prompt_alone("SINE's expert", expert)
        check_span("SINE", start, end, "0 and 0.6")
        if not weight_hooks(expert):
            raise ValueError("SINE's expert is a plain prompt, so its prediction is the MODEL's own: put what was "
                             "learned from the picture on it (Concept on One Prompt, or Create Hook LoRA).")
        if editor_of(model, SINE):
            raise ValueError("The MODEL carries SINE already, whose expert has its share of the prediction: use one of "
                             "the two.")
        return io.NodeOutput(attach(model, SINE(expert, share, start, end)))
