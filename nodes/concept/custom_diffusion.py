"""Custom Diffusion (K, V)."""
from comfy_api.latest import io

from ...concept.custom_diffusion import KeysAndValues
from ..search import aliases
from .widgets import TrainableType, added, more_input, rate_input


class PalimpsestLearnKV(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnKV", display_name="Custom Diffusion (K, V)", category="palimpsest/concept",
            **aliases("custom diffusion", "train keys and values", "fine-tune cross-attention"),
            description="Lets a concept be learned in the keys and values of cross-attention alone (Kumari et al. "
                        "2022), usually with a new word and pictures of the class.",
            inputs=[rate_input(1e-5, "Paper: 1e-5, times the batch. The miniature: 2e-3."), more_input()],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, lr, more=None) -> io.NodeOutput:
        return added(KeysAndValues(lr), more)
