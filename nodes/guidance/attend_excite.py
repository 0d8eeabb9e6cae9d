"""Attend-and-Excite."""
from comfy_api.latest import io

from ...editing.run import attach
from ...editing.word_maps import nearest_resolution as nearest
from ...guidance.attend_excite import THRESHOLDS, AttendExcite
from ...host.tokens import parse_word_values
from ...host.unet import require_unet


class PalimpsestAttendExcite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttendExcite", display_name="Attend-and-Excite", category="palimpsest/guidance",
            description="Moves the latent until each named word is attended to somewhere, so that no object of the "
                        "prompt is left out (Chefer et al. 2023). On noise or on an inversion, with Prompt Edit's "
                        "target; for Euler's steps.",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("words", default="", tooltip="The words of the sampled prompt that are to be seen, as "
                                                             "in 'cat, frog'; the second of two is 'cat#2'. The paper "
                                                             "names the nouns."),
                io.Float.Input("scale", default=20.0, min=0.1, max=1000.0, step=0.1,
                               tooltip="How far a step moves along the gradient, at the first; it falls to 0.71 of it. "
                                       "Paper: 20."),
                io.Float.Input("end", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it ends. Paper: 0.5."),
                io.String.Input("thresholds", default=", ".join(f"{k:g}: {v:g}" for k, v in THRESHOLDS.items()),
                                tooltip="Where the latent is moved until every word is attended to as much: share of "
                                        "the schedule and level, both 0 to 1. Empty: one move a step only. Paper: 0: "
                                        "0.05, 0.2: 0.5, 0.4: 0.8."),
                io.Int.Input("refinements", default=20, min=1, max=100,
                             tooltip="The most moves at a threshold. Paper: 20."),
                io.Float.Input("resolution", default=0.25, min=0.0, max=1.0, step=0.0625,
                               tooltip="Maps are read where the grid's side is this share of the latent's, or the "
                                       "nearest coarser the model has: 0.25 is 16² tokens of a 64² latent (paper)."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, words, scale, end, thresholds, refinements, resolution) -> io.NodeOutput:
        require_unet(model, "Attend-and-Excite")
        if not words.strip():
            raise ValueError("Attend-and-Excite attends to words, and none is named: write those of the prompt that "
                             "are to be seen, as in 'cat, frog'.")
        if not end:
            raise ValueError("Attend-and-Excite that ends at 0 changes nothing: raise end (paper: 0.5).")
        try:
            levels = tuple((float(share), level) for share, level in parse_word_values(thresholds).items())
        except ValueError:
            levels = ((-1, 0),)
        if not all(0 <= n <= 1 for pair in levels for n in pair):
            raise ValueError("Thresholds are shares of the schedule with levels, both 0 to 1, and these are "
                             f"{thresholds!r}: write them as in '0: 0.05, 0.2: 0.5, 0.4: 0.8'.")
        return io.NodeOutput(attach(model, AttendExcite(words, nearest(model, resolution), scale, end, levels,
                                                        refinements)))
