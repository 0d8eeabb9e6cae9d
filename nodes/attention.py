"""Attention nodes: maps of a picture's words, heat maps and masks from them, and Prompt-to-Prompt."""
import torch
from comfy_api.latest import io, ui
from torchvision.transforms.functional import gaussian_blur

from ..attention.alignment import PromptEdit
from ..attention.control import positions, require_unet
from ..attention.p2p import PromptToPrompt
from ..attention.store import read_maps
from ..blending.local_blend import covered, picture_mask, warn_if_wide
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import find_in_some, parse_word_values, parse_words, require_columns
from ..inversion.trajectory import Inversion
from ..metrics.masks import grow as grow_mask
from .drawing import heat_rows, sheet

InversionType, PromptEditType, AttentionType = io.Custom("INVERSION"), io.Custom("PROMPT_EDIT"), io.Custom("ATTENTION")


def threshold_input(paper="0.3"):
    return io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
        "Share of the words' largest value that counts as the words. Higher is tighter. 0: found in the maps themselves. "
        f"Paper: {paper}, with refine off."))


def refine_input():
    return io.Boolean.Input("refine", default=True, optional=True, tooltip=(
        "Whether the words' maps are made finer and whole by self-attention: what looks alike counts alike. Paper: off."))


def check_source(inversion: Inversion, edit: PromptEdit, node: str):
    """The INVERSION's source text must be the one that PROMPT_EDIT aligned, and all of its conditioning."""
    if inversion.tokens is None:
        raise ValueError(f"{node} needs the source's words, the INVERSION was made from a CONDITIONING without them: "
                         "connect Prompt Edit's source CONDITIONING to the inversion node.")
    for i, pair in enumerate(edit.pairs):
        held = inversion.tokens[i % inversion.batch % len(inversion.tokens)]
        if held != pair.source:
            raise ValueError(f"The INVERSION was made from {held.text!r}, Prompt Edit's source is {pair.source.text!r}: "
                             "connect the same Prompt Edit to both.")
    require_columns(inversion.tokens, inversion.conditioning[0][0])


def per_token(values: dict, edit: PromptEdit, default: float) -> tuple:
    """One tensor [target tokens] a pair, from {word: value}; "default" sets the rest. A word may be in some targets only."""
    tensors = [torch.full((len(pair.target.ids),), float(values.get("default", default))) for pair in edit.pairs]
    for name, value in values.items():
        if name == "default":
            continue
        for tensor, word in zip(tensors, find_in_some(name, [pair.target for pair in edit.pairs])):
            if word:
                tensor[list(word.positions)] = value
    return tuple(tensors)


class PalimpsestAttentionInject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionInject",
            display_name="Attention Inject",
            category="palimpsest/attention",
            description="Prompt-to-Prompt: the source's attention maps hold the layout while the target's words fill it.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                PromptEditType.Input("prompt_edit"),
                io.Float.Input("cross_start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which cross-attention maps begin to be replaced. Paper: 0."),
                io.Float.Input("cross_end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Share at which it ends. Higher keeps more of the source's layout. Paper: 0.8, 0.4 for "
                                       "looser edits."),
                io.Float.Input("self_start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which self-attention maps begin to be replaced. Paper: 0."),
                io.Float.Input("self_end", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Share at which it ends. Higher keeps shapes; lower it to change a shape. Paper: 0.4, "
                                       "tried from 0.3 to 0.7."),
                io.Float.Input("cross_resolution", default=1.0, min=0.0, max=1.0, step=0.0625,
                               tooltip="Cross-attention is replaced where its grid's side is at most this share of the latent's: "
                                       "1 = everywhere (paper), 0.25 = 16² tokens of a 64² latent."),
                io.Float.Input("self_resolution", default=0.5, min=0.0, max=1.0, step=0.0625,
                               tooltip="The same for self-attention. 0.5 = 32² tokens of a 64² latent (the authors' code for "
                                       "real pictures); 0.25 = 16² (the paper's own)."),
                io.String.Input("word_weights", default="", tooltip="Re-weighting: the strength of target words' maps, as in "
                                "'fluffy: 3, snow: -1'. 1 = unchanged. Paper: -2 to 10."),
                io.String.Input("word_ends", default="", tooltip="An end of its own for a target word's cross-attention, as in "
                                "'lion: 0.4'. The others end at cross_end."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, inversion, prompt_edit, cross_start, cross_end, self_start, self_end, cross_resolution,
                self_resolution, word_weights, word_ends) -> io.NodeOutput:
        require_unet(model, "Attention Inject")
        check_family(model, inversion)
        check_source(inversion, prompt_edit, "Attention Inject")
        ends = per_token(parse_word_values(word_ends), prompt_edit, cross_end)
        given = parse_word_values(word_weights)
        weights = per_token(given, prompt_edit, 1.0)
        coarsest = min(positions(model.model.diffusion_model).values())
        cross = cross_resolution >= coarsest and any((e > cross_start).any() for e in ends)
        self_ = self_resolution >= coarsest and self_end > self_start
        if not (cross or self_):
            raise ValueError(
                f"Attention Inject would change nothing: cross-attention runs from {cross_start} to {cross_end} up to "
                f"{cross_resolution} of the latent's side, self-attention from {self_start} to {self_end} up to "
                f"{self_resolution}; set an end above its start (paper: 0.8 and 0.4) and a resolution of {coarsest} or more.")
        asked = per_token(dict(given, default=1.0), prompt_edit, 1.0) if cross else weights  # a default may spare a word
        lost = [e[(w != 1) & ((e <= cross_start) | (cross_resolution < coarsest))] for e, w in zip(ends, asked)]
        if any(map(len, lost)):
            last = min(float(e.min()) for e in lost if len(e))
            why = (f"cross_resolution is {cross_resolution}: set it to {coarsest} or more" if cross_resolution < coarsest else
                   f"that runs from {cross_start} to {last:g}: set cross_end, or the word's end, above cross_start (paper: 0.8)")
            raise ValueError(f"Attention Inject has word_weights {word_weights!r} and replaces no cross-attention where they would "
                             f"scale it; {why}.")
        return io.NodeOutput(attach(model, PromptToPrompt(
            inversion, prompt_edit.pairs, (cross_start if cross else 1.0, cross_end), (self_start if self_ else 1.0, self_end), ends,
            weights, cross_resolution, self_resolution)))


class PalimpsestAttentionStore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionStore",
            display_name="Attention Store",
            category="palimpsest/attention",
            description="Where the model sees each source word in the picture: cross-attention maps along the inversion's trajectory.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                PromptEditType.Input("prompt_edit"),
                io.Float.Input("resolution", default=0.25, min=0.0, max=1.0, step=0.0625,
                               tooltip="The maps' side as a share of the latent's; the nearest one at or under it that the "
                                       "model has. 0.25 = 16² of a 64² latent (paper), which is where words lie clearest."),
            ],
            outputs=[AttentionType.Output(display_name="ATTENTION")],
        )

    @classmethod
    def execute(cls, model, inversion, prompt_edit, resolution) -> io.NodeOutput:
        require_unet(model, "Attention Store")
        check_family(model, inversion)
        check_source(inversion, prompt_edit, "Attention Store")
        return io.NodeOutput(read_maps(model, inversion, resolution))


class PalimpsestAttentionHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionHeatmap",
            display_name="Attention Heatmap",
            category="palimpsest/attention",
            description="Each word's attention over the picture, labelled.",
            inputs=[
                AttentionType.Input("attention"),
                io.Image.Input("image", tooltip="The picture that was inverted."),
                io.String.Input("words", default="", tooltip="Words of the source prompt, separated by commas; 'cat#2' is the "
                                "second cat. Empty: all words."),
            ],
            outputs=[io.Image.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, attention, image, words) -> io.NodeOutput:
        rows, window = [], covered(image.shape[1:3], attention.latent)
        for i, found in enumerate(parse_words(words, attention.tokens)):
            known = attention.tokens[i].named
            maps = {_label(w, known): attention.map(i, [w]) for w in found or known}
            rows += heat_rows(image[i % image.shape[0]][window], maps)
        page = sheet(rows)
        return io.NodeOutput(page, ui=ui.PreviewImage(page, cls=cls))


def _label(word, known):
    """A word's text, and which of several it is where it is one of them alone."""
    same = [w.positions for w in known if w.name == word.name]
    return word.text if len(same) == 1 or word.positions not in same else f"{word.text}#{same.index(word.positions) + 1}"


class PalimpsestAttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionMask",
            display_name="Attention Mask",
            category="palimpsest/attention",
            description="A mask of what some words name in the picture.",
            inputs=[
                AttentionType.Input("attention"),
                io.String.Input("words", default="",
                                tooltip="Words of the source prompt, separated by commas; the mask is where they lie together."),
                threshold_input(),
                io.Int.Input("grow", default=0, min=0, max=64, tooltip="Spread the mask by this many latent cells (8 pixels on SD)."),
                io.Float.Input("blur", default=0.0, min=0.0, max=16.0, step=0.1,
                               tooltip="Soften its edge: standard deviation in latent cells. 0 = hard."),
                io.Image.Input("image", optional=True, tooltip="The mask takes this picture's size; without it, the latent's."),
                refine_input(),
            ],
            outputs=[io.Mask.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, attention, words, threshold, grow, blur, image=None, refine=True) -> io.NodeOutput:
        size = attention.latent
        if image is not None:
            size = tuple(s.stop - s.start for s in covered(image.shape[1:3], size))
        cell = size[0] / attention.latent[0]
        chosen = parse_words(words, attention.tokens)
        if not words.strip():
            raise ValueError(f"Attention Mask has no word to find; the source's words are: "
                             f"{', '.join(w.text for w in attention.tokens[0].named)}.")
        mask = attention.mask(chosen, size, threshold, refine)
        if not mask.flatten(1).any(1).all():
            raise ValueError(f"The mask of {words!r} at threshold {threshold} is empty: lower the threshold (0 finds one), or name "
                             "other words.")
        warn_if_wide("Attention Mask", mask)
        mask = grow_mask(mask, round(grow * cell))
        if blur:
            sigma = blur * cell
            reach = [min(int(3 * sigma), side - 1) for side in reversed(size)]  # it reflects at the edges
            mask = gaussian_blur(mask[:, None], [2 * r + 1 for r in reach], sigma)[:, 0]
        if image is not None:
            mask = picture_mask(mask, image.shape[1:3])
        return io.NodeOutput(mask, ui=ui.PreviewMask(mask, cls=cls))


NODES = [PalimpsestAttentionStore, PalimpsestAttentionHeatmap, PalimpsestAttentionMask, PalimpsestAttentionInject]
