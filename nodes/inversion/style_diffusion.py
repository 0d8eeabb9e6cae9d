"""StyleDiffusion Invert."""
from comfy_api.latest import io

from ...editing.inverting import learn
from ...inversion.style_diffusion import METHOD
from ..search import aliases
from ..widgets import InversionType, learning_inputs, setting_input


class PalimpsestStyleDiffusionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestStyleDiffusionInvert", display_name="StyleDiffusion Invert",
            category="palimpsest/inversion",
            description="Learns for each step a scale and a shift of the cross-attention values, so that guidance "
                        "returns the picture (Li et al. 2023). The maps, and so the layout, stay. Replay Inversion "
                        "applies both to the target.",
            **aliases("style diffusion", "learned values", "attention value inversion"),
            inputs=[
                *learning_inputs(METHOD, "It falls to a twentieth in the last step, as in the authors' code. Authors: "
                                     "100, for a network."),
                setting_input(METHOD, "regularise", step=0.1, tooltip=(
                    "Weight of attention regularisation. Higher keeps the words' maps closer to the inversion's. 0 "
                    "leaves them free. Authors: 1.")),
                setting_input(METHOD, "end", step=0.01, tooltip=(
                    "Share of the schedule until which a new prompt uses what was learned. Higher keeps more of the "
                    "picture and weakens the edit. The source prompt always uses it. Authors: 0.5.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, regularise, end) -> io.NodeOutput:
        return io.NodeOutput(learn(METHOD, model, inversion, cfg, negative, iterations=iterations,
                                   tolerance=tolerance, regularise=regularise, end=end))
