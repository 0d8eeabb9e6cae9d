"""MagicRemover."""
import re

from comfy_api.latest import io

from ...editing.editor import editor_of, editors
from ...editing.masks import latent_mask, warn_if_wide, word_mask
from ...editing.run import attach
from ...editing.word_maps import nearest_resolution, word_layers_of
from ...guidance.magic_remover import MagicRemover, Surroundings, object_map, union
from ...host.network import require_attention, require_words
from ...host.tokens import parse_words
from ..checks import check_attention, check_trajectory
from ..search import aliases
from ..widgets import AttentionType, InversionType, refine_input


class PalimpsestMagicRemover(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMagicRemover", display_name="MagicRemover", category="palimpsest/guidance",
            description="Removes the object that the words name (Yang et al. 2023). Fills its area from the "
                        "surroundings and changes nothing else. Sample a prompt of what should be seen there.",
            **aliases("remove object", "erase object", "delete object", "remove person", "erase person",
                      "remove people", "object eraser", "clean up photo", "lama remove",
                      "inpaint without mask"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.String.Input("words", default="", tooltip="All words of the source prompt that belong to the "
                                                             "object: 'purple, heart'. 'heart#2' is the second heart."),
                io.Float.Input("threshold", default=0.0, min=0.0, max=0.99, step=0.01, tooltip=(
                    "Attention above this share of its maximum marks the object. 0: automatic (Otsu).")),
                io.Float.Input("scale", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="How far the latent moves away from the words, if the sampled prompt has them. "
                                       "Published code: 1. 0 only fills the area."),
                io.Float.Input("start", default=0.15, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it begins. Published code: 0.15."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share where the removal ends. The rest of the picture is held to the end. "
                                       "Published code: 1."),
                io.Mask.Input("mask", optional=True, tooltip="1 on the object, instead of ATTENTION."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the object."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, threshold, scale, start, end, mask=None, attention=None,
                refine=True) -> io.NodeOutput:
        (require_words if words.strip() else require_attention)(model, "MagicRemover")
        check_trajectory(model, inversion, "MagicRemover")
        if (mask is None) == (attention is None):
            has = "neither MASK nor ATTENTION" if mask is None else "both MASK and ATTENTION"
            raise ValueError(f"MagicRemover has {has} to find the object: connect one of them.")
        if attention is not None and not words.strip():
            raise ValueError("MagicRemover has ATTENTION, but no words to find in it: write the object's words, as "
                             "in 'purple, heart'.")
        if start >= end:
            raise ValueError(f"MagicRemover starts at {start:g} and ends at {end:g}, so no step is left: lower start "
                             "or raise end (0.15 and 1 work well).")
        before = [e for e in editors(model) if isinstance(e, MagicRemover)]
        if any(e.inversion is not inversion for e in before):
            raise ValueError("The MagicRemover before this one has another INVERSION, but both remove objects of "
                             "one picture: connect the same INVERSION to both.")
        size = tuple(inversion.shape[-2:])
        if mask is not None:
            place, resolution = latent_mask(mask, size), nearest_resolution(model, 0.25)
        else:
            check_attention(attention, inversion)
            found = parse_words(words, attention.tokens)
            columns = [[attention.columns(i, [word]) for word in found[i % len(found)]] for i in range(inversion.batch)]
            maps = object_map(attention.chosen(refine).movedim(1, -1), columns)
            place, resolution = word_mask(maps, size, threshold, refine, grow=False), attention.resolution
            warn_if_wide("MagicRemover", place)
        if inversion.tokens:
            parse_words(words, inversion.tokens)  # an unknown word is an error
        names = tuple(filter(str.strip, re.split(r"[,\n]", words)))
        removers = [*before, MagicRemover(inversion, names, place, scale, resolution, start, end,
                                            word_layers_of(model))]
        around = Surroundings(inversion, union([e.place for e in removers]), min(e.start for e in removers))
        return io.NodeOutput(attach(attach(model, removers[-1]), around, replacing=editor_of(model, Surroundings)))
