"""Blending nodes: what keeps the source exact outside a mask."""
from functools import partial

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..attention.control import require_unet
from ..attention.store import WordMaps
from ..attention.tf_icon import Composite, Donor
from ..blending.blended_latent import ShrinkingBlend, needs_mask, shrinking
from ..blending.local_blend import LocalBlend, latent_mask
from ..blending.noise_mask import AGAINST, NoiseMask
from ..blending.object_aware import ObjectAware
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import parse_words, present_words
from ..metrics.masks import grow as grown
from .attention import AttentionType, InversionType, refine_input, threshold_input


def check_attention(attention, inversion):
    """ATTENTION must be of the INVERSION's pictures."""
    def describe(prompts, pictures, size):
        return f"{pictures} pictures on a latent of {size[0]} × {size[1]} ({', '.join(repr(t.text) for t in prompts)})"
    mine, theirs = (describe(tokens or (), pictures, size) for tokens, pictures, size in (
        (dict.fromkeys(attention.tokens), len(attention.maps), attention.latent),
        (dict.fromkeys(inversion.tokens or ()), inversion.batch, inversion.shape[-2:])))
    if mine != theirs:
        raise ValueError(f"The ATTENTION is of {mine}, the INVERSION of {theirs}: connect the same INVERSION to Attention Store.")


def check_trajectory(model, inversion, name):
    """The INVERSION must be of this family of models and hold the source's latents."""
    check_family(model, inversion)
    if inversion.latents is None:
        raise ValueError(f"{name} holds the source's latents, the {inversion.method} INVERSION has none: invert with a method "
                         "that keeps its trajectory, such as DDIM Invert.")


class PalimpsestLatentBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLatentBlend",
            display_name="Latent Blend (Inversion)",
            category="palimpsest/blending",
            description="Outside the mask the source comes back exactly: at every model call its own latent, and its own "
                        "prediction.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("start", default=0.2, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule from which the blend holds. 0 = from the first step. Paper: 0.2."),
                io.String.Input("source_words", default="", tooltip="With ATTENTION: words of the source prompt whose place may "
                                "be written over, separated by commas."),
                io.String.Input("target_words", default="", tooltip="With ATTENTION: words of the target prompt; where this run "
                                "sees them is added to the mask as it goes."),
                threshold_input(),
                io.Mask.Input("mask", optional=True, tooltip="1 where the edit may write, 0 where the source stays. Soft values "
                              "blend."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the words' places."),
                io.String.Input("subtract_words", default="", optional=True, tooltip="With ATTENTION: words of either prompt whose "
                                "place is taken out of the mask again, whatever else is in it."),
                io.Boolean.Input("masks_in_time", default=False, optional=True,
                                 tooltip="Off: each mask of a batch is for a row of the latent. On: they follow each other from "
                                         "start to the end, each for an equal share of the schedule."),
                refine_input(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, inversion, start, source_words, target_words, threshold, mask=None, attention=None, subtract_words="",
                masks_in_time=False, refine=True) -> io.NodeOutput:
        check_trajectory(model, inversion, "Latent Blend")
        wanted = source_words.strip() or target_words.strip()
        words = bool(wanted or subtract_words.strip())
        if words != (attention is not None):
            has, lacks = ("words", "ATTENTION") if words else ("ATTENTION", "source_words or target_words")
            raise ValueError(f"Latent Blend has {has} but no {lacks}: connect Attention Store and name the words, or neither.")
        if mask is None and not wanted:
            raise ValueError("Latent Blend has neither MASK nor ATTENTION and would return the source: connect one of them.")
        if start >= 1:
            raise ValueError(f"Latent Blend starts at {start} and the schedule ends at 1: nothing would be blended (paper: 0.2).")
        if masks_in_time and (mask is None or len(mask) < 2):
            raise ValueError(f"Latent Blend is to use masks in time and has {0 if mask is None else len(mask)}: connect a batch "
                             "of two or more, or turn masks_in_time off.")
        size, named, removed, gathered = tuple(inversion.shape[-2:]), None, None, {}
        if words:
            require_unet(model, "Latent Blend by words")
            check_attention(attention, inversion)
            if threshold >= 1:
                raise ValueError(f"The mask of {wanted or subtract_words!r} at threshold {threshold} is empty: lower the "
                                 "threshold (0 finds one).")
        if source_words.strip():
            named = attention.masks(parse_words(source_words, attention.tokens), size, threshold, refine)
        if target_words.strip():
            gathered["gathered"] = WordMaps(lambda prompts: parse_words(target_words, prompts), attention.share,
                                            attention.fine if refine else None)
        if subtract_words.strip():
            found, lost = present_words(subtract_words, attention.tokens)
            removed = attention.masks(found, size, threshold, refine, grow=False)

            def subtracted(prompts):
                here, missing = present_words(subtract_words, prompts)
                parse_words(", ".join(name for name in lost if name in missing), prompts)  # an error where neither prompt has it
                return here

            gathered["removing"] = WordMaps(subtracted, attention.share, attention.fine if refine else None, bool(lost))
        for gather in gathered.values():
            model = attach(model, gather)
        painted = None if mask is None else latent_mask(mask, size)
        known = [m for m in (named and named.masks[-1], painted) if m is not None]
        if removed and "gathered" not in gathered and not any((m * (1 - r)).any() for m in known for r in removed.masks[-1]):
            raise ValueError(f"The words {subtract_words!r} are subtracted and nothing of the mask is left: name fewer, or "
                             "raise the threshold.")
        return io.NodeOutput(attach(model, LocalBlend(
            inversion, painted, start, named, removed, in_time=masks_in_time,
            **{kind: partial(gather.mask, threshold=threshold, grow=kind == "gathered") for kind, gather in gathered.items()})))


class PalimpsestBlendedLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestBlendedLatent", display_name="Blended Latent", category="palimpsest/blending",
            description="Blended Latent Diffusion (Avrahami et al. 2023): the mask begins grown and shrinks to itself, so that "
                        "small masks have room to begin an edit. With an INVERSION and a MASK the source stays exact outside; "
                        "without, it shrinks the noise mask of the LATENT being sampled (Set Latent Noise Mask).",
            inputs=[
                io.Model.Input("model"),
                io.Int.Input("grow", default=3, min=1, max=64,
                             tooltip="Latent cells (8 pixels on SD) by which the mask is grown at first; one less at a time. "
                                     "Authors: 3."),
                io.Float.Input("end", default=0.75, min=0.01, max=0.99, step=0.01,
                               tooltip="Share of the schedule from which the mask is itself again. Authors: 0.75."),
                InversionType.Input("inversion", optional=True, tooltip="With a MASK: outside it this picture comes back."),
                io.Mask.Input("mask", optional=True, tooltip="With an INVERSION: 1 where the edit may write. Soft values blend."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, grow, end, inversion=None, mask=None) -> io.NodeOutput:
        if (inversion is None) != (mask is None):
            has, lacks = ("a MASK", "INVERSION") if inversion is None else ("an INVERSION", "MASK")
            raise ValueError(f"Blended Latent has {has} but no {lacks}: connect both, or neither to use the LATENT's own noise "
                             "mask.")
        if inversion is None:
            m = model.clone()
            m.set_model_denoise_mask_function(shrinking(grow, end, model.model_options.get("denoise_mask_function")))
            m.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "palimpsest.noise_mask", needs_mask)
            return io.NodeOutput(m)
        check_trajectory(model, inversion, "Blended Latent")
        cells = latent_mask(mask, tuple(inversion.shape[-2:]))
        return io.NodeOutput(attach(model, ShrinkingBlend(inversion, tuple(grown(cells, n) for n in range(grow + 1)), end)))


class PalimpsestNoiseMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNoiseMask", display_name="Noise Mask", category="palimpsest/blending",
            description="Finds at every step where the target's prediction differs from the source's, and keeps the source "
                        "exactly elsewhere (Watch Your Steps, Mirzaei et al. 2024). No mask and no words needed.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Combo.Input("against", options=list(AGAINST), default="source",
                               tooltip="What the target's prediction is compared with: the source prompt's, one more row of "
                                       "every forward; or the null prompt's, which is there at CFG over 1 but marks all that the "
                                       "target names."),
                io.Float.Input("start", default=0.2, min=0.0, max=0.99, step=0.01,
                               tooltip="Share of the schedule from which the mask is read and holds. Paper: 0.2."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share until which it is read anew at each step; then the last one stays. At start or "
                                       "before: read once, as in the paper."),
                io.Float.Input("threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="The scaled difference from which a place may change. Higher is tighter. Paper: 0.5."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, against, start, end, threshold) -> io.NodeOutput:
        check_trajectory(model, inversion, "Noise Mask")
        if threshold <= 0:
            raise ValueError("Noise Mask at threshold 0 lets every place change and holds nothing: raise it (paper: 0.5).")
        return io.NodeOutput(attach(model, NoiseMask(inversion, against, start, end, threshold)))


class PalimpsestObjectAwareBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestObjectAwareBlend", display_name="Object-Aware Blend", category="palimpsest/blending",
            description="One object and the step from which it is edited; chain one node an object (OIR, Yang et al. 2024). "
                        "Until its step its place holds the source, and outside all places the source stays exact.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Mask.Input("mask", tooltip="1 where this object is and its edit may write. Soft values blend."),
                io.Float.Input("start", default=0.4, min=0.0, max=0.99, step=0.01,
                               tooltip="Share of the schedule from which this object is edited. Early (0 to 0.3) for another "
                                       "shape, late (0.5 to 0.7) for a colour or a texture. The paper searches it for each "
                                       "object."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, mask, start) -> io.NodeOutput:
        check_trajectory(model, inversion, "Object-Aware Blend")
        return io.NodeOutput(attach(model, ObjectAware(inversion, latent_mask(mask, tuple(inversion.shape[-2:])), start)))


class PalimpsestInjectComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestInjectComposite", display_name="Inject Composite", category="palimpsest/blending",
            description="Sets an object of one inverted picture into another (TF-ICON, Lu et al. 2023): the start is composed of "
                        "both noises, and both pictures' self-attention makes one field.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion", tooltip="The main picture's. Replay this one."),
                InversionType.Input("reference", tooltip="Of the picture with the object: of the main picture's size, with the "
                                    "object where it is to be, inverted with the same steps."),
                io.Mask.Input("mask", tooltip="1 where the object is."),
                io.Int.Input("margin", default=1, min=0, max=32,
                             tooltip="Latent cells (8 pixels on SD) around the object that are made anew, to join it to its "
                                     "surroundings. The paper takes the object's bounding box."),
                io.Float.Input("attention_end", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule until which both pictures' self-attention is composed. "
                                       "Paper: 0.4."),
                io.Float.Input("blend_end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Share until which the main picture is put back outside object and margin. Paper: 0.8."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the margin's noise."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, reference, mask, margin, attention_end, blend_end, seed) -> io.NodeOutput:
        require_unet(model, "Inject Composite")
        for given in (inversion, reference):
            check_trajectory(model, given, "Inject Composite")
        if inversion.shape != reference.shape:
            raise ValueError(f"The main picture's latent is {list(inversion.shape)}, the reference's {list(reference.shape)}: "
                             "put the reference on a canvas of the main picture's size before inverting it.")
        place = (latent_mask(mask, tuple(inversion.shape[-2:])) > 0.5).float()
        if not place.flatten(1).any(1).all():
            raise ValueError("The MASK of the object is empty: draw 1 where the object is in the reference.")
        donor = Donor(reference, attention_end)
        return io.NodeOutput(attach(attach(model, donor), Composite(
            inversion, attention_end, donor, place, grown(place, margin), blend_end, seed)))


NODES = [PalimpsestLatentBlend, PalimpsestBlendedLatent, PalimpsestNoiseMask, PalimpsestObjectAwareBlend,
         PalimpsestInjectComposite]
