"""Attention Store, Attention Heatmap and Attention Mask."""
import torch
from comfy_api.latest import io, ui
from torchvision.transforms.functional import gaussian_blur

from ...attention.store import read_maps
from ...editing.masks import covered, picture_mask, warn_if_wide
from ...host.network import require_words
from ...host.sampling import check_family
from ...host.tokens import parse_words
from ...metrics.drawing import heat_rows, reduced, sheet, veil
from ...metrics.masks import grow as grow_mask
from ..auto import Auto
from ..checks import check_source
from ..search import aliases
from ..widgets import AttentionType, InversionType, PromptEditType, auto_input, refine_input, threshold_input


class PalimpsestAttentionStore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionStore",
            display_name="Attention Store",
            category="palimpsest/attention",
            description="Reads where the model sees each source word: cross-attention maps along the inversion's "
                        "trajectory.",
            **aliases("cross attention maps", "save attention", "attention controller", "where the model looks",
                      "DAAM"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                PromptEditType.Input("prompt_edit"),
                io.Float.Input("resolution", default=0.25, min=0.0, max=1.0, step=0.0625,
                               tooltip="Side of the maps as a share of the latent's. The model's nearest grid at or "
                                       "below it is used. 0.25 = 16² of a 64² latent (paper), where words are "
                                       "clearest."),
            ],
            outputs=[AttentionType.Output(display_name="ATTENTION")],
        )

    @classmethod
    def execute(cls, model, inversion, prompt_edit, resolution) -> io.NodeOutput:
        require_words(model, "Attention Store")
        check_family(model, inversion)
        check_source(inversion, prompt_edit, "Attention Store")
        return io.NodeOutput(read_maps(model, inversion, resolution, prompt_edit))


class PalimpsestAttentionHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionHeatmap",
            display_name="Attention Heatmap",
            category="palimpsest/attention",
            description="Shows each word's attention over the picture, labelled. Point at a word to see it alone, "
                        "click it to choose it.",
            **aliases("show attention", "heat map", "word heat map", "where the model looks", "visualize attention",
                      "DAAM", "saliency"),
            inputs=[
                AttentionType.Input("attention"),
                io.Image.Input("image", tooltip="The picture that was inverted."),
                io.String.Input("words", default="", tooltip="Words of the source prompt, separated by commas. 'cat#2' "
                                                             "is the second cat. Empty: all words."),
            ],
            outputs=[io.Image.Output(), io.String.Output(display_name="words", tooltip=(
                "The chosen words, for Attention Mask and the editors."))],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, attention, image, words) -> io.NodeOutput:
        rows, views, window = [], [], covered(image.shape[1:3], attention.latent)
        for i, found in enumerate(parse_words(words, attention.tokens)):
            known = attention.tokens[i].named
            maps = {_label(w, known): attention.map(i, [w]) for w in found or known}
            rows += heat_rows(image[i % image.shape[0]][window], maps)
            views.append(_view(image[i % image.shape[0]][window], {_label(w, known): attention.map(i, [w])
                                                                   for w in known}))
        page = sheet(rows)
        return io.NodeOutput(page, words, ui={**ui.PreviewImage(page, cls=cls).as_dict(), "palimpsest_words": views})


def _view(picture, maps) -> dict:
    """A picture and the map of each of its words, which web/words.js lays over it, in the host's folder of previews."""
    def shown(pixels):
        return ui.PreviewImage(pixels).as_dict()["images"]
    veils = torch.stack([veil((m - m.min()) / (m.max() - m.min() or 1)) for m in maps.values()])
    return {"picture": shown(reduced(picture[..., :3])[None])[0],
            "words": [{"name": name, "map": place} for name, place in zip(maps, shown(veils))]}


def _label(word, known):
    """A word's text, with its number ("cat#2") where it is one of several alike."""
    same = [w.positions for w in known if w.name == word.name]
    if len(same) == 1 or word.positions not in same:
        return word.text
    return f"{word.text}#{same.index(word.positions) + 1}"


class PalimpsestAttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionMask",
            display_name="Attention Mask",
            category="palimpsest/attention",
            description="Makes a mask of what the words name in the picture.",
            **aliases("mask from text", "mask by words", "text to mask", "word mask", "segment by text",
                      "select object by name", "clipseg", "auto mask", "segmentation without model",
                      "mask of background"),
            inputs=[
                AttentionType.Input("attention"),
                io.String.Input("words", default="",
                                tooltip="Words of the source prompt, separated by commas. One mask covers them all."),
                threshold_input(),
                io.Int.Input("grow", default=0, min=0, max=64, tooltip=(
                    "Grows the mask by this many latent cells (8 pixels on SD).")),
                io.Float.Input("blur", default=0.0, min=0.0, max=16.0, step=0.1,
                               tooltip="Softens the edge. Standard deviation in latent cells, 0 = hard."),
                io.Image.Input("image", optional=True, tooltip=(
                    "The mask takes this picture's size. Not connected: the latent's.")),
                refine_input(),
                auto_input("choose_words", "auto takes the words of the source that Prompt Edit changes, in place of "
                                           "words. The mask is white for what may change the whole picture, as a style "
                                           "or a thing that is added."),
            ],
            outputs=[io.Mask.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, attention, words, threshold, grow, blur, image=None, refine=True,
                choose_words="as set") -> io.NodeOutput:
        size = attention.latent
        if image is not None:
            size = tuple(s.stop - s.start for s in covered(image.shape[1:3], size))
        cell = size[0] / attention.latent[0]
        if choose_words == "auto":
            auto = Auto.of_attention("Attention Mask", attention, words)
            auto.say(sides=("source",))
            chosen = auto.source_words(max(len(auto.pairs), len(attention.maps)))
        elif words.strip():
            chosen = parse_words(words, attention.tokens)
        else:
            raise ValueError("Attention Mask has no words to find: write some of the source's words, which are "
                             f"{', '.join(w.text for w in attention.tokens[0].named)}.")
        mask = attention.mask(chosen, size, threshold, refine)
        mask[[not found for found in chosen]] = 1  # what is new may be anywhere
        if not mask.flatten(1).any(1).all():
            raise ValueError(f"The mask of {words!r} at threshold {threshold} is empty: lower the threshold (0 finds "
                             "one), or name other words.")
        if choose_words != "auto":
            warn_if_wide("Attention Mask", mask)
        mask = grow_mask(mask, round(grow * cell))
        if blur:
            sigma = blur * cell
            reach = [min(int(3 * sigma), side - 1) for side in reversed(size)]  # it reflects at the edges
            mask = gaussian_blur(mask[:, None], [2 * r + 1 for r in reach], sigma)[:, 0]
        if image is not None:
            mask = picture_mask(mask, image.shape[1:3])
        return io.NodeOutput(mask, ui=ui.PreviewMask(mask, cls=cls))
