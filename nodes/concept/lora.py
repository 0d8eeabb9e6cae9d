"""LoRA Weights."""
from comfy_api.latest import io

from ...concept.lora import PARTS, LoRA
from ..search import aliases
from .widgets import TrainableType, added, more_input, rate_input, text_encoder_input


class PalimpsestLearnLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnLoRA", display_name="LoRA Weights", category="palimpsest/concept",
            **aliases("train LoRA", "fine-tune", "low rank", "my own dog", "teach the model"),
            description="Lets a concept be learned as LoRA: two thin matrices beside each weight (Hu et al. 2021). The "
                        "file is small and works in every LoRA loader.",
            inputs=[
                rate_input(1e-4, "diffusers: 1e-4. The miniature: 2e-3 to 4e-3."),
                io.Int.Input("rank", default=4, min=1, max=1024, tooltip=(
                    "Width of the two matrices. Higher can learn more details, and more by heart. diffusers: 4.")),
                io.Float.Input("alpha", default=0.0, min=0.0, max=1024.0, step=0.5, tooltip=(
                    "The change is scaled by alpha / rank. 0: alpha is the rank.")),
                io.Combo.Input("layers", options=list(PARTS), default="attention", tooltip=(
                    "attention: only its projections (diffusers). all: also convolutions and feed-forward layers, "
                    "which learn a subject's details more faithfully. after cross-attention: what takes its output on "
                    "U-Nets (Xiang et al. 2023), a small file.")),
                text_encoder_input(),
                more_input(),
            ],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, lr, rank, alpha, layers, text_encoder, more=None) -> io.NodeOutput:
        return added(LoRA(lr, rank, alpha, layers, text_encoder), more)
