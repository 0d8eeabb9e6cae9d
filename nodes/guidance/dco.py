"""Reward Guidance (DCO)."""
from comfy_api.latest import io

from ...editing.run import attach
from ...guidance.dco import RewardGuidance
from ..checks import check_prompt_alone, check_span
from ..search import aliases


class PalimpsestRewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRewardGuidance", display_name="Reward Guidance (DCO)", category="palimpsest/guidance",
            **aliases("reward guidance", "LoRA on one prompt", "less LoRA", "subject or prompt"),
            description="Samples a prompt with the model as it was, and adds what a concept or a LoRA learned over it, "
                        "with a scale of its own (Lee et al. 2024). One network, one row more.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without the concept. The prompt being sampled is without "
                                                "the new word."),
                io.Conditioning.Input("expert", tooltip=(
                    "The same prompt with what was learned, from Concept on One Prompt. ComfyUI's Create Hook LoRA "
                    "with Cond Set Props serves too.")),
                io.Float.Input("scale", default=3.0, min=0.0, max=100.0, step=0.1, tooltip=(
                    "How strongly the concept is drawn in. Higher looks more like it, lower follows the prompt more. "
                    "Paper: 3, at CFG 7.5.")),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it begins. Paper: 0."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it ends. Paper: 1."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, expert, scale, start, end) -> io.NodeOutput:
        check_span("Reward Guidance", start, end, "0 to 1")
        check_prompt_alone("Reward Guidance's expert", expert)
        return io.NodeOutput(attach(model, RewardGuidance(expert, scale, start, end)))
