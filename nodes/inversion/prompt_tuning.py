"""Prompt Tuning Invert."""
from comfy_api.latest import io

from ...editing.inverting import learn
from ...inversion.prompt_tuning import METHOD
from ..search import aliases
from ..widgets import InversionType, learning_inputs, setting_input


class PalimpsestPromptTuningInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptTuningInvert", display_name="Prompt Tuning Invert",
            category="palimpsest/inversion",
            description="Tunes the prompt's embedding for each step, so that sampling with guidance follows the "
                        "inversion (Dong et al. 2023). Replay Inversion mixes it with the target's. More target "
                        "gives more edit.",
            **aliases("PTI", "prompt tuning inversion", "learn prompt", "optimize prompt embedding"),
            inputs=[
                *learning_inputs(METHOD, "Paper: 5, with another optimiser."),
                setting_input(METHOD, "mix", step=0.01, tooltip=(
                    "The target's share of the embedding. The rest is the tuned embedding. 0 returns the picture "
                    "with any prompt. This is the paper's eta, above 0 and up to 1. No value was found for it.")),
                io.Conditioning.Input("target", optional=True,
                                      tooltip="The prompt whose embedding the first step starts from. Paper: the "
                                              "target. Empty: the inversion's source prompt. It suits many targets."),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, mix, target=None) -> io.NodeOutput:
        return io.NodeOutput(learn(METHOD, model, inversion, cfg, negative, target, iterations=iterations,
                                   tolerance=tolerance, mix=mix))
