"""Nodes that share attention: with a reference picture or row, with another picture's appearance, among words."""
import torch
from comfy_api.latest import io

from ..attention.control import positions, require_unet
from ..attention.cross_image import CrossImage, two_finest
from ..attention.layers import places, roles
from ..attention.reweight import Reweight
from ..attention.store import WordMaps, resolution
from ..attention.style_aligned import ReferencePicture, ReferenceRow, SharedNorms, Sharing
from ..blending.local_blend import latent_mask
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import parse_word_values, parse_words
from .blending import check_trajectory
from .features import check_span, layers_of, layers_input, null_input, share_input
from .runner import InversionType


def everywhere(unet) -> frozenset:
    return frozenset(p.position for p in places(unet))


class PalimpsestStyleAligned(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestStyleAligned", display_name="Style Aligned", category="palimpsest/attention",
            description="Gives what is sampled the style of an inverted picture, or of the batch's first row, by sharing its "
                        "self-attention (Hertz et al. 2024).",
            inputs=[
                io.Model.Input("model"),
                share_input("start", 0.0, "Share of the schedule from which attention is shared. Paper: 0."),
                share_input("end", 1.0, "Share at which it ends; lower holds less of the style. Paper: 1."),
                io.Float.Input("shift", default=0.69, min=-10.0, max=10.0, step=0.01, tooltip=(
                    "Added to the scores of the reference's tokens: higher takes more of it, its content too. Paper: ln 2 = "
                    "0.69 with an INVERSION, 0 across a batch.")),
                io.Float.Input("scale", default=1.0, min=0.0, max=4.0, step=0.01, tooltip=(
                    "Factor on the scores of the reference's tokens. Paper: 1.")),
                io.Boolean.Input("normalise", default=True, tooltip=(
                    "Whether queries and keys take the reference's mean and deviation (AdaIN), which is what makes a style be "
                    "shared. Paper: on.")),
                layers_input("all"),
                null_input(),
                InversionType.Input("inversion", optional=True, tooltip="The picture whose style is wanted. Not connected: the "
                                    "first row of the batch is the reference."),
                io.Boolean.Input("share_norms", default=True, optional=True, tooltip=(
                    "Whether the network's group norms take their statistics over both pictures, which shares contrast and "
                    "colours. Paper: on, and off across a batch on SDXL.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, start, end, shift, scale, normalise, layers, null_too, inversion=None,
                share_norms=True) -> io.NodeOutput:
        node = "Style Aligned"
        require_unet(model, node)
        check_span(node, start, end, "0 and 1")
        chosen = layers_of(layers, model, everywhere)
        share = Sharing(scale, shift, normalise)
        if inversion is not None:
            check_family(model, inversion)
        if share_norms:
            model = attach(model, SharedNorms(inversion, start, end, roles(null_too)))
        if inversion is None:
            return io.NodeOutput(attach(model, ReferenceRow(chosen, start, end, roles(null_too), share)))
        return io.NodeOutput(attach(model, ReferencePicture(inversion, chosen, start, end, roles(null_too), share)))


class PalimpsestCrossImageAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestCrossImageAttention", display_name="Cross-Image Attention", category="palimpsest/attention",
            description="Gives an inverted picture's structure the appearance of another of the same kind of object, wherever "
                        "their parts correspond (Alaluf et al. 2024).",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("appearance", tooltip="The picture whose colours and textures are wanted. What is sampled, "
                                    "from Replay's LATENT, is the structure."),
                share_input("start", 0.1, "Share of the schedule from which the appearance is looked up. Paper: step 10 of 100."),
                share_input("end", 0.9, "Share at which it ends on the finest grid. Paper: step 90."),
                share_input("coarse_end", 0.7, "Share at which it ends on the other grids. Paper: step 70."),
                share_input("adain_start", 0.2, "Share from which the predicted picture takes the appearance's mean and "
                                                "deviation in each channel (AdaIN). 1: never. Paper: step 20."),
                io.Float.Input("swap_guidance", default=3.5, min=1.0, max=20.0, step=0.1, tooltip=(
                    "How far the prediction goes from the one without the exchange, at the run's start; half of it at the end. "
                    "Over 1 it costs a row. Paper: 3.5.")),
                io.Float.Input("contrast", default=1.67, min=1.0, max=10.0, step=0.01, tooltip=(
                    "Contrast of the attention maps: higher looks up fewer places each. 1: no map is made. Paper: 1.67.")),
                layers_input("up, on its two finest grids (SD1.x and SD2.x: u3-8; SDXL: u)"),
                io.Mask.Input("structure_mask", optional=True, tooltip="1 on the object in the structure: AdaIN acts there "
                              "alone."),
                io.Mask.Input("appearance_mask", optional=True, tooltip="1 on the object in the appearance: its statistics are "
                              "taken there alone."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, appearance, start, end, coarse_end, adain_start, swap_guidance, contrast, layers, structure_mask=None,
                appearance_mask=None) -> io.NodeOutput:
        node = "Cross-Image Attention"
        require_unet(model, node)
        check_trajectory(model, appearance, node)
        check_span(node, start, max(end, coarse_end), "0.1 and 0.9")
        size = tuple(appearance.shape[-2:])
        masks = [torch.ones(1, *size) if m is None else latent_mask(m, size).round() for m in (structure_mask, appearance_mask)]
        for name, mask in zip(("structure_mask", "appearance_mask"), masks):
            if not mask.any((1, 2)).all():
                raise ValueError(f"{name} has {int((~mask.any((1, 2))).sum())} of {len(mask)} masks without an object, and AdaIN "
                                 "takes statistics of one: paint where it is.")
        if adain_start == 1 and (structure_mask is not None or appearance_mask is not None):
            raise ValueError(f"{node} has masks for AdaIN and adain_start 1, which turns it off: lower it (paper: 0.2) or "
                             "disconnect the masks.")
        network = model.model.diffusion_model
        chosen = layers_of(layers, model, two_finest)
        shares = {p: share for p, share in positions(network).items() if p in chosen}
        fine = frozenset(p for p, share in shares.items() if share == max(shares.values()))
        return io.NodeOutput(attach(model, CrossImage(appearance, chosen, start, end, ("target",), fine, coarse_end, contrast,
                                                      swap_guidance, adain_start, *masks)))


class PalimpsestAttentionReweight(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionReweight", display_name="Attention Re-weight", category="palimpsest/attention",
            description="Makes words of the sampled prompt count for more or less, and keeps words inside a region, in any "
                        "generation (Hertz et al. 2022; Guo & Lin 2024).",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("word_weights", default="", tooltip=(
                    "Factors on words' attention, as in 'fluffy: 3, striped: 0'. Paper: 2 to 10, or -1 to turn a word round.")),
                io.String.Input("restrained", default="", tooltip=(
                    "Words that are to act inside the region only, separated by commas.")),
                io.String.Input("region_words", default="", tooltip=(
                    "The region is where these words of the prompt lie, as this run sees them after its first step.")),
                share_input("threshold", 0.3, "Share of the region words' largest value that counts as the region. 0: found in their "
                                              "maps themselves."),
                share_input("start", 0.0, "Share of the schedule from which it acts. Paper: 0."),
                share_input("end", 1.0, "Share at which it ends. Paper: 0.8 for factors with an inversion, 1 without."),
                io.Mask.Input("mask", optional=True, tooltip="The region, 1 where the restrained words may act. Soft values "
                              "blend."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, word_weights, restrained, region_words, threshold, start, end, mask=None) -> io.NodeOutput:
        node = "Attention Re-weight"
        require_unet(model, node)
        check_span(node, start, end, "0 and 1")
        factors, named = parse_word_values(word_weights), bool(region_words.strip())
        if named and mask is not None:
            raise ValueError(f"{node} has both a mask and region_words {region_words!r}: give one of them.")
        if bool(restrained.strip()) != (named or mask is not None):
            has, lacks = ("restrained words", "region") if restrained.strip() else ("a region", "restrained words")
            raise ValueError(f"{node} has {has} but no {lacks}: name the words, and give a mask or region_words, or neither.")
        if not restrained.strip() and all(c == 1 for c in factors.values()):
            raise ValueError(f"{node} has word_weights {word_weights!r} and no restrained words, and would change nothing: write "
                             "a word with a factor other than 1, as in 'fluffy: 3'.")
        region, gather = None, None
        if named:
            gather = WordMaps(lambda prompts: parse_words(region_words, prompts), resolution(model, 0.25))
            model = attach(model, gather)
        if mask is not None:
            region = mask.float()
        return io.NodeOutput(attach(model, Reweight(factors, restrained, region, gather and gather.mask, threshold, start, end)))


NODES = [PalimpsestStyleAligned, PalimpsestCrossImageAttention, PalimpsestAttentionReweight]
