"""Blending nodes: what keeps the source exact outside a mask."""
import math

import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ..attention.control import require_unet
from ..attention.store import WordMaps
from ..blending.local_blend import LocalBlend, latent_mask
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import parse_words
from .attention import AttentionType, InversionType, word_mask


def check_attention(attention, inversion):
    """ATTENTION must be of the INVERSION's pictures."""
    def describe(prompts, pictures, size):
        return f"{pictures} pictures on a latent of {size[0]} × {size[1]} ({', '.join(repr(t.text) for t in prompts)})"
    mine, theirs = (describe(tokens or (), pictures, size) for tokens, pictures, size in (
        (dict.fromkeys(attention.tokens), len(attention.maps), attention.latent),
        (dict.fromkeys(inversion.tokens or ()), inversion.batch, inversion.shape[-2:])))
    if mine != theirs:
        raise ValueError(f"The ATTENTION is of {mine}, the INVERSION of {theirs}: connect the same INVERSION to Attention Store.")


class PalimpsestLatentBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLatentBlend",
            display_name="Latent Blend (Inversion)",
            category="palimpsest/blending",
            description="Outside the mask the source comes back exactly: at every model call its own latent, and its own prediction.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("start", default=0.2, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule from which the blend holds. 0 = from the first step. Paper: 0.2."),
                io.String.Input("source_words", default="", tooltip="With ATTENTION: words of the source prompt whose place may be "
                                "written over, separated by commas."),
                io.String.Input("target_words", default="", tooltip="With ATTENTION: words of the target prompt; where this run sees "
                                "them is added to the mask as it goes."),
                io.Float.Input("threshold", default=0.3, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of a word's largest value that counts as the word. Paper: 0.3."),
                io.Mask.Input("mask", optional=True, tooltip="1 where the edit may write, 0 where the source stays. Soft values blend."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the words' places."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, inversion, start, source_words, target_words, threshold, mask=None, attention=None) -> io.NodeOutput:
        check_family(model, inversion)
        words = bool(source_words.strip() or target_words.strip())
        if inversion.latents is None:
            raise ValueError(f"Latent Blend holds the source's latents, the {inversion.method} INVERSION has none: "
                             "invert with a method that keeps its trajectory, such as DDIM Invert.")
        if words != (attention is not None):
            has, lacks = ("words", "ATTENTION") if words else ("ATTENTION", "source_words or target_words")
            raise ValueError(f"Latent Blend has {has} but no {lacks}: connect Attention Store and name the words, or neither.")
        if mask is None and not words:
            raise ValueError("Latent Blend has neither MASK nor ATTENTION and would return the source: connect one of them.")
        if start >= 1:
            raise ValueError(f"Latent Blend starts at {start} and the schedule ends at 1: nothing would be blended (paper: 0.2).")
        size, gather = tuple(inversion.shape[-2:]), None
        cells = None if mask is None else latent_mask(mask, size)
        if words:
            require_unet(model, "Latent Blend by words")
            check_attention(attention, inversion)
            if threshold >= 1:
                raise ValueError(f"The mask of {source_words.strip() or target_words!r} at threshold {threshold} is empty: lower the "
                                 "threshold (paper: 0.3).")
        if source_words.strip():
            named = torch.stack([word_mask(attention, i, found, size, threshold)
                                 for i, found in enumerate(parse_words(source_words, attention.tokens))])
            rows = math.lcm(len(named), 1 if cells is None else len(cells))
            cells = named if cells is None else torch.maximum(*(repeat_to_batch_size(m, rows) for m in (cells, named)))
        if target_words.strip():
            gather = WordMaps(lambda prompts: parse_words(target_words, prompts), attention.share)
            model = attach(model, gather)
        return io.NodeOutput(attach(model, LocalBlend(inversion, cells, start, gather and gather.mean, threshold)))


NODES = [PalimpsestLatentBlend]
