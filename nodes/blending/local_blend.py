"""Latent Blend (Inversion)."""
from functools import partial

import torch
from comfy_api.latest import io

from ...blending.local_blend import LocalBlend
from ...editing.masks import latent_mask, masks_of
from ...editing.run import attach
from ...editing.word_maps import WordMaps
from ...host.network import require_words
from ...host.tokens import parse_words, present_words
from ..auto import Auto
from ..checks import check_attention, check_trajectory
from ..search import aliases
from ..widgets import AttentionType, InversionType, auto_input, refine_input, threshold_input


class PalimpsestLatentBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLatentBlend",
            display_name="Latent Blend (Inversion)",
            category="palimpsest/blending",
            description="Restores the source exactly outside the mask, by its own latent and prediction at every model "
                        "call.",
            **aliases("keep background", "change background", "keep the face", "protect area", "keep outside of mask",
                      "edit only mask", "local blend", "restore original outside mask", "inpaint without model"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("start", default=0.2, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where blending begins. 0 = the first step. Paper: 0.2."),
                io.String.Input("source_words", default="", tooltip=(
                    "With ATTENTION: words of the source prompt whose area may change, separated by commas.")),
                io.String.Input("target_words", default="", tooltip=(
                    "With ATTENTION: words of the target prompt. Where they appear during sampling is added to the "
                    "mask.")),
                threshold_input(),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "1 where the picture may change, 0 where the source stays. Soft values blend. A video takes one "
                    "for all frames or one a frame.")),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the words."),
                io.String.Input("subtract_words", default="", optional=True,
                                tooltip="With ATTENTION: words of either prompt. Their area is always removed from the "
                                        "mask."),
                io.Boolean.Input("masks_in_time", default=False, optional=True,
                                 tooltip="Off: each mask of a batch is for one row of the latent. On: the masks take "
                                         "turns from start to the end, for equal shares of the schedule."),
                refine_input(),
                auto_input("choose_words", "With ATTENTION: auto takes the words that Prompt Edit changes, in place of "
                                           "source_words and target_words. A change of style or background blends "
                                           "nothing."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, inversion, start, source_words, target_words, threshold, mask=None, attention=None,
                subtract_words="", masks_in_time=False, refine=True, choose_words="as set") -> io.NodeOutput:
        check_trajectory(model, inversion, "Latent Blend")
        wanted, auto = source_words.strip() or target_words.strip(), None
        if choose_words == "auto":
            auto = Auto.of_attention("Latent Blend", attention, wanted)
            auto.say()
            wanted = "auto"
        words = bool(wanted or subtract_words.strip())
        if words != (attention is not None):
            has, lacks = ("words", "ATTENTION") if words else ("ATTENTION", "source_words or target_words")
            raise ValueError(f"Latent Blend has {has} but no {lacks}: connect Attention Store and name the words, or "
                             "neither.")
        if mask is None and not wanted:
            raise ValueError("Latent Blend has neither MASK nor ATTENTION and would return the source: connect one of "
                             "them.")
        if start >= 1:
            raise ValueError(f"Latent Blend starts at {start}, where the schedule ends, so nothing would be blended: "
                             "lower start (paper: 0.2).")
        if masks_in_time and (mask is None or len(mask) < 2):
            raise ValueError(f"Latent Blend needs masks to use in time, but has {0 if mask is None else len(mask)}: "
                             "connect a batch of two or more, or turn masks_in_time off.")
        size, named, removed, gathered = tuple(inversion.shape[-2:]), None, None, {}
        painted = None if mask is None else latent_mask(mask, size) if masks_in_time else masks_of(mask, inversion)

        def maps_of(words, needed=True):
            return WordMaps(words, attention.resolution, attention.fine if refine else None, attention.layers, needed)

        if words:
            require_words(model, "Latent Blend by words")
            check_attention(attention, inversion)
            if threshold >= 1:
                raise ValueError(f"The mask of {wanted or subtract_words!r} at threshold {threshold} is empty: lower "
                                 "the threshold (0 finds one).")
        if auto:
            rows = max(len(auto.pairs), len(attention.maps))
            whole = torch.tensor(auto.whole(rows))
            if painted is None and whole.all() and not subtract_words.strip():
                return io.NodeOutput(model)
            if painted is None and whole.any():
                painted = whole.float()[:, None, None].expand(-1, *size)
            if any(auto.source_words(rows)):
                named = attention.masks(auto.source_words(rows), size, threshold, refine)
            if any(auto.target_words(rows)):
                gathered["gathered"] = maps_of(auto.sampled_words)
        if source_words.strip():
            named = attention.masks(parse_words(source_words, attention.tokens), size, threshold, refine)
        if target_words.strip():
            gathered["gathered"] = maps_of(lambda prompts: parse_words(target_words, prompts))
        if subtract_words.strip():
            found, lost = present_words(subtract_words, attention.tokens)
            removed = attention.masks(found, size, threshold, refine, grow=False)

            def subtracted(prompts):
                here, missing = present_words(subtract_words, prompts)
                # an error where neither prompt has it
                parse_words(", ".join(name for name in lost if name in missing), prompts)
                return here

            gathered["removing"] = maps_of(subtracted, needed=bool(lost))
        for gather in gathered.values():
            model = attach(model, gather)
        known = [m for m in (named and named.masks[-1], painted) if m is not None]
        if removed and "gathered" not in gathered and not any((m * (1 - r)).any() for m in known
                                                              for r in removed.masks[-1]):
            raise ValueError(f"The words {subtract_words!r} are subtracted, and nothing of the mask is left: name "
                             "fewer words, or raise the threshold.")
        return io.NodeOutput(attach(model, LocalBlend(
            inversion, painted, start, named, removed, in_time=masks_in_time,
            **{kind: partial(gather.mask, threshold=threshold, grow=kind == "gathered")
               for kind, gather in gathered.items()})))
