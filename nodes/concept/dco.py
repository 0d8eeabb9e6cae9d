"""Direct Consistency (DCO)."""
from comfy_api.latest import io

from ...concept.dco import DCO
from ..search import aliases
from .widgets import ObjectiveType, more_objectives_input


class PalimpsestDCO(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDCO", display_name="Direct Consistency (DCO)", category="palimpsest/concept",
            **aliases("DCO", "direct consistency optimization", "no class images", "keep the model", "forgetting"),
            description="Lets a concept be learned no further than it must, measured against the frozen model (Lee et "
                        "al. 2024). What the model knew stays, without class pictures.",
            inputs=[
                io.Float.Input("beta", default=1000.0, min=0.001, max=1_000_000.0, step=1.0, tooltip=(
                    "How soon a picture counts as learned. Lower learns more and forgets more. Paper: 1000 to 2000.")),
                io.String.Input("base", default="", tooltip=(
                    "What * reads as for the frozen model. Empty: it is left out, so that 'a photo of a * dog' is 'a "
                    "photo of a dog'. Where * stands alone, write the noun here.")),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, beta, base, more=None) -> io.NodeOutput:
        return io.NodeOutput((*(more or ()), DCO(beta, base.strip())))
