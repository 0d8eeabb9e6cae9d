"""Attend-and-Excite."""
from comfy_api.latest import io

from ...editing.run import attach
from ...editing.word_maps import nearest_resolution, word_layers_of
from ...guidance.attend_excite import THRESHOLDS, AttendExcite
from ...host.network import require_words
from ...host.tokens import parse_word_values
from ..search import aliases


class PalimpsestAttendExcite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttendExcite", display_name="Attend-and-Excite", category="palimpsest/guidance",
            description="Moves the latent until every named word gets attention somewhere, so that no object of the "
                        "prompt is missing (Chefer et al. 2023). Works on noise or an inversion. Sample Prompt Edit's "
                        "target with Euler.",
            **aliases("attend and excite", "missing object", "both objects", "subject neglect", "prompt not followed",
                      "prompt adherence", "forgotten word", "attribute binding"),
            inputs=[
                io.Model.Input("model"),
                io.String.Input("words", default="", tooltip="Words of the sampled prompt that must appear, as in "
                                                             "'cat, frog'. 'cat#2' is the second cat. The paper names "
                                                             "the nouns."),
                io.Float.Input("scale", default=20.0, min=0.1, max=1000.0, step=0.1,
                               tooltip="Step size along the gradient. It falls to 0.71 of this value. Paper: 20."),
                io.Float.Input("end", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it ends. Paper: 0.5."),
                io.String.Input("thresholds", default=", ".join(f"{k:g}: {v:g}" for k, v in THRESHOLDS.items()),
                                tooltip="Pairs of schedule share and attention level, both 0 to 1. At each share the "
                                        "latent moves until every word reaches the level. Empty: one move a step. "
                                        "Paper: 0: 0.05, 0.2: 0.5, 0.4: 0.8."),
                io.Int.Input("refinements", default=20, min=1, max=100,
                             tooltip="Most moves at one threshold. Paper: 20."),
                io.Float.Input("resolution", default=0.25, min=0.0, max=1.0, step=0.0625,
                               tooltip="Grid whose maps are read, as a share of the latent's side, or the model's next "
                                       "coarser one. 0.25 is 16² tokens of a 64² latent (paper)."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, words, scale, end, thresholds, refinements, resolution) -> io.NodeOutput:
        require_words(model, "Attend-and-Excite", "leave it out")
        if not words.strip():
            raise ValueError("Attend-and-Excite needs words, but none is named: write the words of the prompt that "
                             "must appear, as in 'cat, frog'.")
        if not end:
            raise ValueError("Attend-and-Excite ends at 0 and would change nothing: raise end (paper: 0.5).")
        try:
            levels = tuple((float(share), level) for share, level in parse_word_values(thresholds).items())
        except ValueError:
            levels = ((-1, 0),)
        if not all(0 <= n <= 1 for pair in levels for n in pair):
            raise ValueError("Thresholds are shares of the schedule with levels, both 0 to 1, but these are "
                             f"{thresholds!r}: write them as in '0: 0.05, 0.2: 0.5, 0.4: 0.8'.")
        editor = AttendExcite(words, nearest_resolution(model, resolution), scale, end, levels, refinements,
                              word_layers_of(model))
        return io.NodeOutput(attach(model, editor))
