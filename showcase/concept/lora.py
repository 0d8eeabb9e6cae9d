"""LoRA, shown: a learned subject takes a thing's place in a picture."""
from types import SimpleNamespace

from .. import Example
from ..drawing import BROWN, CFG, VIOLET, Drawing, encoded, replay, subject_learned

SUBJECT, PICTURE = 3, {"seed": 38, "kind": "colour"}  # of the miniature's
HAS, WANTED = "a photo of a green circle on a sand background", "a photo of a sks circle on a sand background"
LEARNED, BEFORE, AFTER = "Miniature Subject", "Miniature Scene", "Your subject in its place"
ABOUT = """Press **Run**. The small model learns an object from four pictures, a minute on a processor. Then the \
circle of another picture becomes that object.

### With your own model and pictures
1. Put **Load Checkpoint** (SD1.x, SD2.x or SDXL) in place of *Load Miniature*, three to five of your pictures in \
place of *Miniature Subject*, and **Load Image** in place of *Miniature Scene*. With a LoRA that knows the subject, \
**Load LoRA** gives MODEL and CLIP, and learning is left out.
2. Say in *Concept Images* what each picture shows, one a line, * for your subject. In *LoRA Weights*: learning rate \
1e-4. In *Learn Concept*: 500 steps, batch 1.
3. In *Prompt Edit*, the source says what the picture **shows**, the target has the subject's name. In *Latent Blend* \
name the thing, and the subject.
4. On SD: *Attention Store* `resolution` 0.25, *Attention Inject* `self_resolution` 0.5, CFG 7.5. *Attention Inject* \
keeps the layout. Lower ends let the subject take its own shape.

The paper learns keys, values and a word: **Custom Diffusion (K, V)** and **New Word** do that in place of *LoRA \
Weights*, and the subject is then called *embedding:NAME*."""


def draw(c):
    """Four pictures of an object, what is learned of them, and another picture in which it takes a thing's place."""
    loader, _, learned = subject_learned(c, ABOUT, 600, SUBJECT, 150)
    with c.group("3  Another picture", VIOLET):
        c.column(320)
        scene = c.node("PalimpsestMiniatureScene", None, 220, **PICTURE)
        fitted = c.node("PalimpsestModelSize", model=loader["MODEL"], image=scene["source"])["IMAGE"]
        c.column(320)
        words = c.node("PalimpsestPromptEdit", clip=learned["CLIP"], source=HAS, target=WANTED)
        latent = c.node("VAEEncode", pixels=fitted, vae=loader["VAE"])["LATENT"]
        inversion = c.node("PalimpsestDDIMInvert", model=learned["MODEL"], source=words["source"], latent=latent)
    with c.group("4  The subject takes the thing's place", BROWN):
        c.column(320)
        held = c.node("PalimpsestAttentionInject", model=learned["MODEL"], inversion=inversion["inversion"],
                      prompt_edit=words["prompt edit"], cross_end=0.4, self_end=0.2, self_resolution=1.0)
        maps = c.node("PalimpsestAttentionStore", model=learned["MODEL"], inversion=inversion["inversion"],
                      prompt_edit=words["prompt edit"], resolution=1.0)
        c.column(320)
        blended = c.node("PalimpsestLatentBlend", model=held["MODEL"], inversion=inversion["inversion"],
                         attention=maps["ATTENTION"], source_words="circle", target_words="sks, circle")
        null = encoded(c, SimpleNamespace(loader=learned), "Null prompt", "")
        sampled = replay(c, "Sample the edit", blended["MODEL"], inversion, words["target"], null["CONDITIONING"], CFG)
        picture = c.node("VAEDecode", samples=sampled["output"], vae=loader["VAE"])
        c.node("SaveImage", AFTER, 280, images=picture["IMAGE"], filename_prefix="palimpsest/in_its_place")


TITLE = "Put your subject into a picture (Custom-Edit)"
EXAMPLE = Example("LoRA", workflows=(Drawing(TITLE, draw, 405, shows=(LEARNED, BEFORE, AFTER)),))
