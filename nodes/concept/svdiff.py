"""SVDiff (Spectral Shifts)."""
from comfy_api.latest import io

from ...concept.svdiff import SpectralShifts
from ..search import aliases
from .widgets import TrainableType, added, more_input, rate_input


class PalimpsestLearnSpectral(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnSpectral", display_name="SVDiff (Spectral Shifts)", category="palimpsest/concept",
            **aliases("singular values", "compact fine-tuning", "spectral shifts"),
            description="Lets a concept be learned as shifts of the weights' singular values (Han et al. 2023). So few "
                        "numbers learn slowly and hardly overfit.",
            inputs=[rate_input(1e-3, "Paper: a thousand times that of fine-tuning, about 1e-3. The miniature: 3e-2."),
                    more_input()],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, lr, more=None) -> io.NodeOutput:
        return added(SpectralShifts(lr), more)
