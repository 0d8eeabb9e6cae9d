"""Prompt Mixing."""
import math

import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ...attention.prompt_mixing import MixedValues, MixedWords, PreservedShapes
from ...editing.layers import coarse
from ...editing.masks import latent_mask
from ...editing.run import attach
from ...host.network import require_words, takes_value_inputs
from ...host.sampling import check_family
from ...host.tokens import parse_words
from ..checks import check_attention, check_prompt_alone, check_some, check_span, check_words
from ..search import aliases
from ..widgets import (
    COARSE,
    AttentionType,
    InversionType,
    layers_input,
    layers_of,
    refine_input,
    share_input,
    threshold_input,
)


class PalimpsestPromptMixing(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptMixing", display_name="Prompt Mixing", category="palimpsest/attention",
            description="Varies an object's shape. Another prompt's attention values shape it in the middle of the "
                        "schedule.",
            **aliases("object shape variations", "change shape of object",
                      "prompt to prompt variations"),
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("mix", tooltip="Prompt Edit's target: the picture's prompt with another word for "
                                                     "the object. Sample with Prompt Edit's source."),
                share_input("start", 0.14, "Share of the schedule where mixing begins (T3). Earlier also changes the "
                                           "layout. Paper: step 7 of 50."),
                share_input("end", 0.34, "Share where it ends (T2). Later also changes the appearance. Paper: step 17 "
                                         "of 50."),
                io.String.Input("preserve", default="", tooltip=(
                    "With ATTENTION: words of the source prompt whose shapes should stay, separated by commas.")),
                io.String.Input("object", default="", tooltip="With ATTENTION: the word whose shape varies. Its area "
                                                              "is not preserved."),
                threshold_input("a probability of 0.05"),
                share_input("preserve_end", 0.8, "Shapes are preserved up to this share of the schedule. Paper: step "
                                                 "40 of 50."),
                layers_input(f"shapes are preserved on {COARSE}, on transformers all (ours, untuned)"),
                InversionType.Input("inversion", optional=True, tooltip="Inversion of the source, to preserve shapes."),
                io.Mask.Input("mask", optional=True, tooltip="1 where shapes should stay, besides the words' areas."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the words."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, mix, start, end, preserve, object, threshold, preserve_end, layers, inversion=None,
                mask=None, attention=None, refine=True) -> io.NodeOutput:
        node = "Prompt Mixing"
        require_words(model, node)
        check_span(node, start, end, "0.14 and 0.34")
        check_words(node, preserve + object, attention)
        if len(mix) != 1:
            raise ValueError(f"{node}'s mix has {len(mix)} entries, but needs one: remove Conditioning (Combine).")
        check_prompt_alone(f"{node}'s mix", mix, hooks=False)  # its values are seen in the target's forward
        keeps = bool(preserve.strip()) or mask is not None
        if keeps != (inversion is not None) or object.strip() and not keeps:
            has, lacks = (("something to preserve", "INVERSION") if keeps else
                          ("INVERSION or object", "words or MASK to preserve"))
            raise ValueError(f"{node} has {has} but no {lacks}: connect both to preserve shapes, or none.")
        alone = takes_value_inputs(model.model.diffusion_model)
        model = attach(model, MixedValues(mix[0][0], start, end) if alone else MixedWords(mix, start, end))
        if not keeps:
            return io.NodeOutput(model)
        check_family(model, inversion)
        check_span(f"{node}'s preserving", 0.0, preserve_end, "0.8")
        if attention is not None:
            check_attention(attention, inversion)
        size = tuple(inversion.shape[-2:])

        def found(words):
            return attention.mask(parse_words(words, attention.tokens), size, threshold, refine)

        kept = [found(preserve)] if preserve.strip() else []
        if mask is not None:
            kept.append(latent_mask(mask, size))
        varied = [found(object)] if object.strip() else []
        rows = math.lcm(*map(len, kept + varied))
        kept, varied = ([repeat_to_batch_size(m, rows) for m in masks] for masks in (kept, varied))
        preserved, shape = torch.stack(kept).amax(0), varied[0] if varied else None
        check_some(node, "shape to preserve", preserved if shape is None else preserved * (1 - shape))
        chosen = layers_of(layers, model, lambda unet: coarse(unet, 0.5))
        return io.NodeOutput(attach(model, PreservedShapes(inversion, chosen, 0.0, preserve_end, preserved=preserved,
                                                           varied=shape)))
