"""Nodes that carry the source's features into the target: mutual self-attention, plug-and-play, free-prompt, prompt mixing."""
import math

import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ..attention.control import require_unet
from ..attention.free_prompt import SelfAttentionMaps
from ..attention.layers import coarse, decoder, listed, parse_layers, roles
from ..attention.masactrl import MutualSelfAttention, object_mask
from ..attention.plug_and_play import ResidualFeatures, after_first, second_block
from ..attention.prompt_mixing import MixedValues, PreservedShapes
from ..attention.store import WordMaps, refining, resolution
from ..blending.local_blend import latent_mask, warn_if_wide
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import parse_words
from .attention import AttentionType, InversionType, refine_input, threshold_input
from .blending import check_attention
from .runner import prompt_alone

COARSE = "grids of at most half the latent's side (SD1.x and SD2.x: d2-5, m0, u0-5; SDXL: all)"


def layers_input(default):
    return io.String.Input("layers", default="", tooltip=(
        "Layers of self-attention, written as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, counted from 0. "
        f"Empty: {default}."))


def share_input(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def null_input():
    return io.Boolean.Input("null_too", default=True, tooltip=(
        "Whether the null prompt's rows are edited too, with what the source shows under the null prompt. On (paper): guidance "
        "weighs the words alone. Off: it weighs the source's features as well, which holds the source harder."))


def check_span(node, start, end, paper):
    if start >= end:
        raise ValueError(f"{node} runs from {start} to {end} of the schedule and would change nothing: set its end above its "
                         f"start (paper: {paper}).")


def check_words(node, words, attention):
    """Words are found in an ATTENTION, and an ATTENTION is for words."""
    if bool(words.strip()) != (attention is not None):
        has, lacks = ("words of the source", "ATTENTION") if words.strip() else ("ATTENTION", "words of the source")
        raise ValueError(f"{node} has {has} but no {lacks}: connect Attention Store and name the words, or neither.")


def check_some(node, what, mask):
    """A mask [B, h, w] must show something of every picture."""
    if not mask.flatten(1).any(1).all():
        empty = int((~mask.flatten(1).any(1)).sum())
        raise ValueError(f"{node} finds no {what} in {empty} of {len(mask)} masks: paint it, name other words, or "
                         "change the threshold.")


def layers_of(text, model, default) -> frozenset:
    network = model.model.diffusion_model
    return parse_layers(text, network) if text.strip() else default(network)


class PalimpsestMutualSelfAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMutualSelfAttention", display_name="Mutual Self-Attention (MasaCtrl)",
            category="palimpsest/attention",
            description="MasaCtrl: the target's queries look up the source's contents; the pose may change, the looks stay.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("start", 0.08, "Share of the schedule from which the source is looked up; the steps before it lay "
                                           "out the new pose. Paper: step 4 of 50."),
                share_input("end", 1.0, "Share at which it ends. Paper: 1."),
                layers_input("up, on grids of at least half the latent's side (SD1.x and SD2.x: u3-8, which is the paper's "
                             "layer 10 of 16 on; SDXL: u3-5)"),
                io.String.Input("source_words", default="", tooltip="With ATTENTION: words of the source prompt that name "
                                "the object, separated by commas."),
                io.String.Input("target_words", default="", tooltip="Words of the target prompt that name it; where this "
                                "run sees them is the target's mask."),
                threshold_input("0.1"),
                null_input(),
                io.Mask.Input("source_mask", optional=True, tooltip="1 on the object in the source: foreground then looks up "
                              "foreground, background background."),
                io.Mask.Input("target_mask", optional=True, tooltip="1 where the object is to be. Soft values blend."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find source_words."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, start, end, layers, source_words, target_words, threshold, null_too, source_mask=None,
                target_mask=None, attention=None, refine=True) -> io.NodeOutput:
        node = "Mutual Self-Attention"
        require_unet(model, node)
        check_family(model, inversion)
        check_span(node, start, end, "0.08 and 1")
        check_words(node, source_words, attention)
        known = []
        for side, words, mask in (("source", source_words, source_mask), ("target", target_words, target_mask)):
            if words.strip() and mask is not None:
                raise ValueError(f"{node} has both {side}_mask and {side}_words {words.strip()!r}: give one of them.")
            known.append(bool(words.strip()) or mask is not None)
        if known[0] != known[1]:
            has, lacks = ("source", "target") if known[0] else ("target", "source")
            raise ValueError(f"{node} knows the object's place in the {has} and not in the {lacks}: give {lacks}_mask or "
                             f"{lacks}_words too, or neither.")
        size, gather = tuple(inversion.shape[-2:]), None
        source, target = (None if mask is None else latent_mask(mask, size) for mask in (source_mask, target_mask))
        if source is not None:
            check_some(node, "object of the source", source)
        if attention is not None:
            check_attention(attention, inversion)
            words = parse_words(source_words, attention.tokens)
            source = attention.mask(words, size, threshold, True) if refine else object_mask(
                torch.stack([attention.map(i, found) for i, found in enumerate(words)])[:, None], size, threshold)
            warn_if_wide(node, source)
        if target_words.strip():
            share = attention.share if attention else resolution(model, 0.25)
            gather = WordMaps(lambda prompts: parse_words(target_words, prompts), share, refining(model, size, share) if refine else None)
            model = attach(model, gather)

        def gathered(run):
            maps = None if refine else gather.mean(run)
            return gather.mask(run, threshold) if maps is None else object_mask(maps, run.shape[-2:], threshold)

        chosen = layers_of(layers, model, lambda unet: decoder(unet, 0.5))
        return io.NodeOutput(attach(model, MutualSelfAttention(
            inversion, chosen, start, end, roles(null_too), source, target, gather and gathered)))


class PalimpsestPlugAndPlay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPlugAndPlay", display_name="Plug-and-Play Features", category="palimpsest/attention",
            description="PnP: the source's residual features and self-attention hold the layout; the target prompt repaints it.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("feature_end", 0.8, "Share of the schedule until which the source's residual features are put in "
                                                "place. Paper: 0.8."),
                share_input("attention_end", 0.5, "Share until which its self-attention maps are. Paper: 0.5."),
                io.String.Input("feature_layers", default="", tooltip="Residual blocks, named by the transformer of the up "
                                "section that follows them, as in 'u1, u2'. Empty: u1 (paper: layer 4 of the decoder)."),
                layers_input("all of up but u0 (SD1.x and SD2.x: u1-8, the paper's 4 to 11; SDXL: u1-5)"),
                null_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, feature_end, attention_end, feature_layers, layers, null_too) -> io.NodeOutput:
        node = "Plug-and-Play Features"
        require_unet(model, node)
        check_family(model, inversion)
        if not feature_end and not attention_end:
            raise ValueError(f"{node} with feature_end and attention_end both 0 would change nothing: raise one (paper: 0.8 "
                             "and 0.5).")
        network = model.model.diffusion_model
        named, chosen = parse_layers(feature_layers, network), layers_of(layers, model, after_first)
        if "." in feature_layers or {p[0] for p in named} - {"output"}:
            raise ValueError(f"feature_layers is {feature_layers!r}, and residual features are those of whole blocks of the up "
                             f"section: name them as in 'u1' (this MODEL has {listed(network)}).")
        if feature_end:
            blocks = frozenset(p[1] for p in named) or second_block(network)
            model = attach(model, ResidualFeatures(inversion, blocks, feature_end, roles(null_too)))
        if attention_end:
            model = attach(model, SelfAttentionMaps(inversion, chosen, 0.0, attention_end, roles(null_too), node))
        return io.NodeOutput(model)


class PalimpsestFreePromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFreePromptEdit", display_name="Free-Prompt Edit", category="palimpsest/attention",
            description="FPE: the source's self-attention maps alone hold its geometry; it may be inverted with an empty prompt.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                share_input("start", 0.0, "Share of the schedule at which maps begin to be replaced. Paper: 0."),
                share_input("end", 0.8, "Share at which it ends. Higher keeps shapes, lower frees them. Paper: 0.8."),
                layers_input(COARSE),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, start, end, layers) -> io.NodeOutput:
        node = "Free-Prompt Edit"
        require_unet(model, node)
        check_family(model, inversion)
        check_span(node, start, end, "0 and 0.8")
        chosen = layers_of(layers, model, lambda unet: coarse(unet, 0.5))
        return io.NodeOutput(attach(model, SelfAttentionMaps(inversion, chosen, start, end)))


class PalimpsestPromptMixing(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptMixing", display_name="Prompt Mixing", category="palimpsest/attention",
            description="Object-shape variation: in the middle of the schedule another prompt's values shape the object.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("mix", tooltip="The picture's prompt with another word for the object: Prompt Edit's "
                                      "target. Sample with Prompt Edit's source."),
                share_input("start", 0.14, "Share of the schedule at which it begins to be mixed in (T3). Earlier changes the "
                                           "layout too. Paper: step 7 of 50."),
                share_input("end", 0.34, "Share at which it ends (T2). Later changes the looks too. Paper: step 17 of 50."),
                io.String.Input("preserve", default="", tooltip="With ATTENTION: words of the source prompt whose shapes are "
                                "to stay, separated by commas."),
                io.String.Input("object", default="", tooltip="With ATTENTION: the word whose shape varies; its place is "
                                "taken out of what is preserved."),
                threshold_input("a probability of 0.05"),
                share_input("preserve_end", 0.8, "Share of the schedule until which shapes are preserved. Paper: step 40 of 50."),
                layers_input(f"shapes are preserved on {COARSE}"),
                InversionType.Input("inversion", optional=True, tooltip="To preserve shapes: the source."),
                io.Mask.Input("mask", optional=True, tooltip="1 where shapes are to stay, beside the words' places."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the words' places."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, mix, start, end, preserve, object, threshold, preserve_end, layers, inversion=None, mask=None,
                attention=None, refine=True) -> io.NodeOutput:
        node = "Prompt Mixing"
        require_unet(model, node)
        check_span(node, start, end, "0.14 and 0.34")
        check_words(node, preserve + object, attention)
        if len(mix) != 1:
            raise ValueError(f"{node}'s mix has {len(mix)} entries, one is needed: remove Conditioning (Combine).")
        prompt_alone(f"{node}'s mix", mix)
        keeps = bool(preserve.strip()) or mask is not None
        if keeps != (inversion is not None) or object.strip() and not keeps:
            has, lacks = ("something to preserve", "INVERSION") if keeps else ("INVERSION or object", "words or MASK to preserve")
            raise ValueError(f"{node} has {has} but no {lacks}: connect both to preserve shapes, or neither.")
        model = attach(model, MixedValues(mix[0][0], start, end, (mix,)))
        if not keeps:
            return io.NodeOutput(model)
        check_family(model, inversion)
        check_span(f"{node}'s preserving", 0.0, preserve_end, "0.8")
        if attention is not None:
            check_attention(attention, inversion)
        size = tuple(inversion.shape[-2:])

        masks = [] if attention is None else [attention.mask(parse_words(words, attention.tokens), size, threshold, refine)
                                              for words in (preserve, object)]
        painted = [] if mask is None else [latent_mask(mask, size)]
        rows = math.lcm(*map(len, masks + painted))
        masks, painted = ([repeat_to_batch_size(m, rows) for m in found] for found in (masks, painted))
        kept = torch.stack(masks[:1] + painted).amax(0)
        varied = masks[1] if object.strip() else None
        check_some(node, "shape to preserve", kept if varied is None else kept * (1 - varied))
        chosen = layers_of(layers, model, lambda unet: coarse(unet, 0.5))
        return io.NodeOutput(attach(model, PreservedShapes(inversion, chosen, 0.0, preserve_end, preserved=kept, varied=varied)))


NODES = [PalimpsestMutualSelfAttention, PalimpsestPlugAndPlay, PalimpsestFreePromptEdit, PalimpsestPromptMixing]
