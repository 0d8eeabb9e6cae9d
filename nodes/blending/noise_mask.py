"""Noise Mask."""
from comfy_api.latest import io

from ...blending.noise_mask import AGAINST, NoiseMask
from ...editing.run import attach
from ..checks import check_trajectory
from ..search import aliases
from ..widgets import InversionType


class PalimpsestNoiseMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNoiseMask", display_name="Noise Mask", category="palimpsest/blending",
            description="Finds where the target's prediction differs from the source's at each step. Keeps the source "
                        "exactly elsewhere (Watch Your Steps, Mirzaei et al. 2024). Needs no mask and no words.",
            **aliases("watch your steps", "auto mask", "edit without mask", "relevance map",
                      "keep what does not change"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Combo.Input("against", options=list(AGAINST), default="source",
                               tooltip="What the target's prediction is compared with. source: the source prompt's, "
                                       "one extra row per forward. null: the negative prompt's, free at CFG over 1, "
                                       "but it marks all that the target names."),
                io.Float.Input("start", default=0.2, min=0.0, max=0.99, step=0.01,
                               tooltip="Share of the schedule where the mask is first read and applied. Paper: 0.2."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="The mask is read again at each step up to this share, then stays. At or before "
                                       "start it is read once, as in the paper."),
                io.Float.Input("threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Cells whose scaled difference reaches this may change. Higher is tighter. "
                                       "Paper: 0.5."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, against, start, end, threshold) -> io.NodeOutput:
        check_trajectory(model, inversion, "Noise Mask")
        if threshold <= 0:
            raise ValueError("Noise Mask at threshold 0 lets every place change and keeps nothing: raise it (paper: "
                             "0.5).")
        return io.NodeOutput(attach(model, NoiseMask(inversion, against, start, end, threshold)))
