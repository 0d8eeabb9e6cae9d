"""Break-A-Scene's parts of a picture, and its mask attention."""
from comfy_api.latest import io

from ...concept.break_a_scene import WEIGHT, MaskAttention, caption, unions
from ...editing.concepts import NAME, ConceptImages, Example
from ...metrics.drawing import rgb
from ..search import aliases
from .images import lines, on_latents
from .widgets import ConceptImagesType, ObjectiveType, more_objectives_input


class PalimpsestSceneParts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSceneParts", display_name="Break-A-Scene (Parts)", category="palimpsest/concept",
            **aliases("several concepts from one picture", "multiple subjects", "learn from a mask", "segment",
                      "one photo"),
            description="One picture with several things, a mask and a word of each, to learn them apart (Avrahami et "
                        "al. 2023). Give New Word the same names and chain them, and Learn Concept all of it.",
            inputs=[
                io.Image.Input("image", tooltip="One picture."),
                io.Mask.Input("masks", tooltip="One a thing, of the picture's size, as a batch."),
                io.Vae.Input("vae"),
                io.String.Input("names", multiline=True, default="my-cup\nmy-bear", tooltip=(
                    "The words' names, one a line, in the masks' order. Each is a New Word's name. In prompts: "
                    "embedding:NAME.")),
                io.Boolean.Input("flip", default=True, tooltip=(
                    "Whether the mirrored picture is learned too. Turn it off for lettering and faces. Authors: on.")),
            ],
            outputs=[ConceptImagesType.Output(display_name="concept images")])

    @classmethod
    def execute(cls, image, masks, vae, names, flip) -> io.NodeOutput:
        found = lines(names)
        if len(image) != 1 or len(found) != len(masks):
            raise ValueError(f"Break-A-Scene has {len(image)} pictures, {len(masks)} masks and {len(found)} names: "
                             "connect one picture, and write one name a mask.")
        folded = [name.lower() for name in found]  # as words are found in a prompt
        wrong = next((name for name in found if not NAME.fullmatch(name) or folded.count(name.lower()) > 1), None)
        if wrong:
            raise ValueError(f"Break-A-Scene's names are {', '.join(found)}, and {wrong} is no name of one word: use "
                             "each once, with letters, digits, _ and - alone.")
        words, examples = [f"embedding:{name}" for name in found], []
        for pixels, areas in [(image, masks)] + [(image.flip(2), masks.flip(2))] * flip:
            latents = vae.encode(rgb(pixels)).cpu()
            shown = dict(zip(words, on_latents(areas, pixels, vae, latents)))
            examples += [Example(latents[0], caption(chosen), {word: shown[word] for word in chosen})
                         for chosen in unions(words)]
        return io.NodeOutput(ConceptImages(tuple(examples)))


class PalimpsestMaskAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMaskAttention", display_name="Break-A-Scene (Mask Attention)",
            category="palimpsest/concept",
            **aliases("attention loss", "disentangle", "bind word to mask"),
            description="Draws each word's cross-attention to its mask as it learns, so that it means what the mask "
                        "shows and nothing else. For pictures with masks, on U-Nets.",
            inputs=[
                io.Float.Input("weight", default=WEIGHT, min=0.0001, max=100.0, step=0.001, round=0.0001, tooltip=(
                    "What it counts beside the picture's loss. Higher keeps things further apart. Paper: 0.01.")),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, weight, more=None) -> io.NodeOutput:
        return io.NodeOutput((*(more or ()), MaskAttention(weight)))
