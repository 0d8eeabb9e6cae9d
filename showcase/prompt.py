"""Prompt Edit, shown; and prompts that a vision-language model of the host writes."""
from functools import partial

from ..miniature import SCENE
from . import Example, folds
from .attention.p2p import BY_WORDS
from .drawing import BLUE, BROWN, CFG, GREEN, YELLOW, Drawing
from .pictures import back_and_edited

TITLE = "Change a word, the sentence written for you (Generate Text)"
READER = {"name": "qwen3vl_4b_fp8_scaled.safetensors", "directory": "text_encoders",
          "url": "https://huggingface.co/Comfy-Org/Qwen3-VL/resolve/main/text_encoders/"
                 "qwen3vl_4b_fp8_scaled.safetensors"}  # as in the host's own template of this model
QUESTION = """Describe this picture in one plain sentence of at most 20 words, for a text-to-image prompt. Begin with \
"a photo of". Name each thing with its colour, then the place. No opinions."""
ABOUT = """1. Choose **your checkpoint** (SD1.x, SD2.x or SDXL), **your picture**, and a **vision-language model** in \
*Load CLIP*: Qwen3-VL, Qwen3.5 or Gemma 4, a file in `models/text_encoders`.
2. Say which word of the picture's sentence becomes which, press **Run**, and read the sentence. If the word is not in \
it, choose one that is.

ComfyUI writes the sentence itself (*Generate Text*). Versions without that node, such as 0.3.64, cannot run this: \
write the sentence by hand in *Start here*."""


def written(c, small=False):
    """The picture's sentence is written by a model that sees it, and a word of it is changed.

    small: on the miniature and its scene, whose own text stands for the model's.
    """
    with c.group("1  Model and picture", BLUE):
        c.column(400)
        c.note("How to use it", ABOUT, 200)
        if small:
            loader, scene = c.node("PalimpsestLoadMiniature"), c.node("PalimpsestMiniatureScene", **SCENE)
            image, said = scene["source"], scene["source text"]
        else:
            loader = c.node("CheckpointLoaderSimple", ckpt_name=folds.CHECKPOINT["name"])
            loader.data["properties"]["models"] = [folds.CHECKPOINT]
            c.column(400)
            image = c.node("LoadImage", None, 300, image=folds.PHOTO)["IMAGE"]
    with c.group("2  The picture's sentence, and a word of it changed", GREEN):
        c.column(420)
        if not small:
            reader = c.node("CLIPLoader", "Load a vision-language model", clip_name=READER["name"], type="ideogram4")
            reader.data["properties"]["models"] = [READER]
            # the frontend makes this node as low as it can be
            said = c.node("TextGenerate", None, -124, clip=reader["CLIP"], prompt=QUESTION, image=image,
                          max_length=64, sampling_mode="off")["generated_text"]
        c.column(420)
        c.node("PreviewAny", "What the picture shows", 100, source=said)
        other = c.node("StringReplace", "Change a word", string=said, find="green" if small else "white",
                       replace="blue")["STRING"]
    c.row()
    with c.group("3  In words", BROWN):
        c.column(420)
        node = c.folded(BY_WORDS, inputs={
            "model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"], "image": image,
            folds.SHOWS: said, folds.WANTED: other, **({folds.GUIDANCE: CFG} if small else {})})
    with c.group("4  Edited", YELLOW):
        c.column(560)
        c.node("PreviewImage", folds.EDITED, 480, images=node["image"])
        c.column(560)
        c.node("PreviewImage", "Report", 300, images=node["report"])


EXAMPLE = Example("Prompt Edit", workflows=(Drawing(TITLE, written, 15, SCENE, partial(written, small=True)),),
                  pages={"PalimpsestPromptEdit": back_and_edited})
