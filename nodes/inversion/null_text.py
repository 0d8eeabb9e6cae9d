"""Null-Text Optimize: the unconditional embedding of every step, learned along an inversion."""
from comfy_api.latest import io

from ...editing.inverting import learn
from ...inversion.null_text import METHOD
from ..search import aliases
from ..widgets import InversionType, setting_input


class PalimpsestNullTextOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNullTextOptimize", display_name="Null-Text Optimize", category="palimpsest/inversion",
            description="Optimises an unconditional embedding for each step, so that sampling with guidance follows "
                        "the inversion (Mokady et al. 2023). At this CFG the source returns, and edits stay close "
                        "to it. Replay Inversion uses the embeddings as the negative prompt.",
            **aliases("null text inversion", "NTI", "learn negative prompt", "unconditional embedding",
                      "inversion with guidance"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the inversion, without editors."),
                InversionType.Input("inversion", tooltip="The trajectory to follow, from DDIM Invert (paper), "
                                                         "Fixed-Point Invert or ReNoise Invert."),
                io.Float.Input("cfg", default=METHOD.cfg, min=1.1, max=100.0, step=0.1,
                               tooltip="The CFG you will sample at. Paper: 7.5."),
                setting_input(METHOD, "iterations", tooltip=(
                    "Maximum updates per step, three model passes each. Paper: 10.")),
                setting_input(METHOD, "tolerance", step=1e-6, round=1e-7, tooltip=(
                    "A step ends when its mean squared error to the inversion is below this. The limit grows by "
                    "twice this every fiftieth of the schedule. Higher is faster. Paper: 1e-5.")),
                setting_input(METHOD, "start", tooltip=(
                    "The embedding the first step starts from. source prompt is already close: it reconstructs "
                    "better in a fraction of the passes. negative: the connected prompt (paper).")),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "Only if start is negative. Paper: the empty prompt.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, cfg, iterations, tolerance, start, negative=None) -> io.NodeOutput:
        return io.NodeOutput(learn(METHOD, model, inversion, cfg, negative, iterations=iterations,
                                   tolerance=tolerance, start=start))
