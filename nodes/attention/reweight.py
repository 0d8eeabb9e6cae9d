"""Attention Re-weight."""
from comfy_api.latest import io

from ...attention.reweight import Reweight
from ...editing.run import attach
from ...editing.word_maps import WordMaps, nearest_resolution, word_layers_of
from ...host.network import require_words
from ...host.tokens import parse_word_values, parse_words
from ..checks import check_span
from ..search import aliases
from ..widgets import share_input


class PalimpsestAttentionReweight(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionReweight", display_name="Attention Re-weight", category="palimpsest/attention",
            description="Strengthens or weakens words of the sampled prompt, or confines them to a region. Works in "
                        "any generation (Hertz et al. 2022; Guo & Lin 2024).",
            **aliases("word weight", "stronger word", "weaker word", "emphasize word", "prompt weighting",
                      "regional prompt", "word in region", "focus text", "attention equalizer"),
            inputs=[
                io.Model.Input("model"),
                io.String.Input("word_weights", default="", tooltip=(
                    "Attention factors of words, as in 'fluffy: 3, striped: 0'. Paper: 2 to 10, or -1 to reverse a "
                    "word.")),
                io.String.Input("restrained", default="", tooltip=(
                    "Words that act only inside the region, separated by commas.")),
                io.String.Input("region_words", default="", tooltip=(
                    "These words of the prompt give the region, by their attention after the first step.")),
                share_input("threshold", 0.3, "Attention above this share of its maximum counts as the region. 0: "
                                              "automatic (Otsu)."),
                share_input("start", 0.0, "Share of the schedule where it begins. Paper: 0."),
                share_input("end", 1.0, "Share where it ends. Paper: 0.8 for factors with an inversion, 1 without."),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "The region, 1 where the restrained words may act. Soft values blend.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, word_weights, restrained, region_words, threshold, start, end, mask=None) -> io.NodeOutput:
        node = "Attention Re-weight"
        require_words(model, node)
        check_span(node, start, end, "0 and 1")
        factors, named = parse_word_values(word_weights, -100, 100), bool(region_words.strip())
        if named and mask is not None:
            raise ValueError(f"{node} has both a mask and region_words {region_words!r}: give one of them.")
        if bool(restrained.strip()) != (named or mask is not None):
            has, lacks = ("restrained words", "region") if restrained.strip() else ("a region", "restrained words")
            raise ValueError(f"{node} has {has} but no {lacks}: name the words, and give a mask or region_words, or "
                             "neither.")
        if not restrained.strip() and all(c == 1 for c in factors.values()):
            raise ValueError(f"{node} has word_weights {word_weights!r} and no restrained words, so it would change "
                             "nothing: write a word with a factor other than 1, as in 'fluffy: 3'.")
        region, gather = None, None
        if named:
            gather = WordMaps(lambda prompts: parse_words(region_words, prompts), nearest_resolution(model, 0.25),
                              layers=word_layers_of(model))
            model = attach(model, gather)
        if mask is not None:
            region = mask.float()
        return io.NodeOutput(attach(model, Reweight(factors, restrained, region, gather and gather.mask, threshold,
                                                    start, end)))
