"""KV Inversion."""
from comfy_api.latest import io

from ...editing.inverting import learn
from ...inversion.kv import METHOD
from ..search import aliases
from ..widgets import InversionType, learning_inputs, setting_input


class PalimpsestKVInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestKVInvert", display_name="KV Inversion", category="palimpsest/inversion",
            description="Learns for each step what to add to self-attention's keys and values, so that guidance "
                        "returns the picture's contents (Huang et al. 2023). For prompts that change an action. "
                        "Replay Inversion adds it to the target's.",
            **aliases("change action", "learn keys and values"),
            inputs=[
                *learning_inputs(METHOD, "Not the paper's value."),
                setting_input(METHOD, "layers", tooltip=(
                    "Self-attention layers, such as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, "
                    "counted from 0. More layers keep more and use more memory. Empty: the last of each resolution "
                    "in u (SD1.x and SD2.x: u2, u5, u8; SDXL: u2.9, u5.1). Not the paper's choice.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, layers) -> io.NodeOutput:
        return io.NodeOutput(learn(METHOD, model, inversion, cfg, negative, iterations=iterations,
                                   tolerance=tolerance, layers=layers))
