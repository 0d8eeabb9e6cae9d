"""RF-Inversion Guide."""
from comfy_api.latest import io

from ...editing.run import attach
from ...guidance.rf_inversion import TRENDS, DrawnToPicture
from ..checks import check_span, check_trajectory
from ..search import aliases
from ..widgets import InversionType, share_input


class PalimpsestRFInversionGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRFInversionGuide", display_name="RF-Inversion Guide", category="palimpsest/guidance",
            description="Draws the first steps to the picture, so that the edit keeps its layout (RF-Inversion, Rout "
                        "et al. 2025). On any inversion and any model.",
            **aliases("RF inversion", "rf-inversion", "keep layout", "keep composition", "stay close to photo",
                      "flux edit", "stylize a photo", "eta"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("eta", default=0.9, min=0.0, max=1.0, step=0.01, tooltip=(
                    "How far each of these steps is drawn to the picture. 1 goes straight to it, 0 does nothing. Lower "
                    "edits more. Paper: 0.9.")),
                share_input("start", 0.0, "Share of the schedule where it begins. Paper: 0."),
                share_input("end", 0.24, "Share of the schedule where it ends. Later keeps more of the picture. Paper: "
                                         "the first 7 of 28 steps, which 0.24 gives."),
                io.Combo.Input("trend", options=list(TRENDS), default="constant", tooltip=(
                    "How eta goes along its steps. falling begins at eta and ends at 0, rising the other way round. "
                    "Paper: constant.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, eta, start, end, trend) -> io.NodeOutput:
        check_trajectory(model, inversion, "RF-Inversion Guide")
        check_span("RF-Inversion Guide", start, end, "0 to 0.24")
        return io.NodeOutput(attach(model, DrawnToPicture(inversion, eta, start, end, trend)))
