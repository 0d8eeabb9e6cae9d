"""Mutual Self-Attention: MasaCtrl."""
import torch
from comfy_api.latest import io

from ...attention.masactrl import MutualSelfAttention, object_mask
from ...editing.layers import decoder, roles
from ...editing.masks import latent_mask, warn_if_wide
from ...editing.run import attach
from ...editing.word_maps import WordMaps, nearest_resolution, refining_resolution, word_layers_of
from ...host.network import require_attention, require_words
from ...host.sampling import check_family
from ...host.tokens import parse_words
from ..checks import check_attention, check_some, check_span, check_words
from ..search import aliases
from ..widgets import (
    AttentionType,
    InversionType,
    layers_input,
    layers_of,
    null_input,
    refine_input,
    share_input,
    threshold_input,
)


class PalimpsestMutualSelfAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMutualSelfAttention", display_name="Mutual Self-Attention (MasaCtrl)",
            category="palimpsest/attention",
            description="MasaCtrl: the target attends to the source's keys and values. The pose may change, the "
                        "appearance stays.",
            **aliases("masactrl", "change pose", "change action", "same person other pose", "same character",
                      "consistent character", "keep identity", "keep the face", "non rigid edit"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("start", 0.08, "Share of the schedule where attention to the source begins. The steps "
                                           "before it lay out the new pose. Paper: step 4 of 50."),
                share_input("end", 1.0, "Share where it ends. Paper: 1."),
                layers_input("up grids of at least half the latent's side (SD1.x and SD2.x: u3-8, the paper's layer 10 "
                             "of 16 on; SDXL: u3-5), on "
                             "transformers the latter half of the last kind of block (Flux: s20-37; ours, untuned)"),
                io.String.Input("source_words", default="", tooltip=(
                    "With ATTENTION: words of the source prompt that name the object, separated by commas.")),
                io.String.Input("target_words", default="", tooltip=(
                    "Words of the target prompt that name it. Their attention during sampling gives the target mask.")),
                threshold_input("0.1"),
                null_input(),
                io.Mask.Input("source_mask", optional=True, tooltip=(
                    "1 on the object in the source. Foreground then attends to foreground, background to background.")),
                io.Mask.Input("target_mask", optional=True, tooltip="1 where the object should be. Soft values blend."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find source_words."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, start, end, layers, source_words, target_words, threshold, null_too,
                source_mask=None, target_mask=None, attention=None, refine=True) -> io.NodeOutput:
        node = "Mutual Self-Attention"
        require_attention(model, node)
        check_family(model, inversion)
        check_span(node, start, end, "0.08 and 1")
        check_words(node, source_words, attention)
        if source_words.strip() or target_words.strip():
            require_words(model, f"{node} by words")
        known = []
        for side, words, mask in (("source", source_words, source_mask), ("target", target_words, target_mask)):
            if words.strip() and mask is not None:
                raise ValueError(f"{node} has both {side}_mask and {side}_words {words.strip()!r}: give one of them.")
            known.append(bool(words.strip()) or mask is not None)
        if known[0] != known[1]:
            has, lacks = ("source", "target") if known[0] else ("target", "source")
            raise ValueError(f"{node} knows where the object is in the {has}, but not in the {lacks}: give "
                             f"{lacks}_mask or {lacks}_words too, or neither.")
        size = tuple(inversion.shape[-2:])
        source, target = (None if mask is None else latent_mask(mask, size) for mask in (source_mask, target_mask))
        if source is not None:
            check_some(node, "object of the source", source)
        if attention is not None:
            check_attention(attention, inversion)
            words = parse_words(source_words, attention.tokens)
            source = attention.mask(words, size, threshold, True) if refine else object_mask(
                torch.stack([attention.map(i, found) for i, found in enumerate(words)])[:, None], size, threshold)
            warn_if_wide(node, source)
        gathered = None
        if target_words.strip():
            resolution = attention.resolution if attention else nearest_resolution(model, 0.25)
            gather = WordMaps(lambda prompts: parse_words(target_words, prompts), resolution,
                              refining_resolution(model, size, resolution) if refine else None, word_layers_of(model))
            model = attach(model, gather)

            def gathered(run):
                maps = None if refine else gather.mean(run)
                return gather.mask(run, threshold) if maps is None else object_mask(maps, run.shape[-2:], threshold)

        chosen = layers_of(layers, model, lambda unet: decoder(unet, 0.5))
        return io.NodeOutput(attach(model, MutualSelfAttention(
            inversion, chosen, start, end, roles(null_too), source, target, gathered)))
