"""Textual Inversion, shown, beside the words in more places that came after it."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, Drawing, sampled, subject_given

NAME, SUBJECT, CAPTIONS = "my-thing", 3, "\n".join(f"a photo of * on a {ground} background" for ground in (
    "wall", "grass", "sand", "night"))
WORDS = {"One vector (Textual Inversion)": ("PalimpsestNewWord", 5e-2),
         "A vector a layer (P+)": ("PalimpsestPPlus", 5e-2),
         "A network of time and layer (NeTI)": ("PalimpsestNeTI", 8e-3)}
ABOUT = """Press **Run**. Three words learn an object from four pictures, two minutes on a processor. The network \
stays as it is.

### With your own model and pictures
1. Put **Load Checkpoint** (SD1.x, SD2.x or SDXL) in place of *Load Miniature*, and three to five of your pictures in \
place of *Miniature Subject*: a **Load Image** each, joined by **Batch Images**, \
or a folder by **Load Image (from Folder)**.
2. Say in *Concept Images* what each shows, one a line, * for the word.
3. Keep one of the three ways. In `like`: what it is, "dog". The first: learning rate 5e-4, 3000 steps, batch 1. P+: \
5e-3, 500 steps, batch 8. NeTI (not on SDXL): 8e-3, 1000 steps, batch 8.
4. The first word stands in any text, with the CLIP that comes out: `a photo of embedding:my-thing`. Words in more \
places need *Concept Prompt*.
5. In *Empty Latent Image*: 512 × 512 (SDXL: 1024 × 1024). In *KSampler*: CFG 7.5, and your own prompts.

**New Word in Stages (ProSpect)** stands where P+ does. *Save Concept* keeps a word."""


def draw(c):
    """Four pictures of an object, three kinds of a new word for it, and each in a scene that they do not show."""
    with c.group("1  Model and pictures", BLUE):
        loader, given, images = subject_given(c, ABOUT, 640, SUBJECT, CAPTIONS)
    with c.group("2  New pictures of it", BROWN):
        c.column(320)
        null = c.node("CLIPTextEncode", "Null prompt", clip=loader["CLIP"], text="")
        empty = c.node("EmptyLatentImage", width=128, height=128)
    c.row()
    for title, (kind, lr) in WORDS.items():
        with c.group(title, GREEN):
            c.column(320)
            word = c.node(kind, name=NAME, like=given["noun"], lr=lr)["trainable"]
            learned = c.node("PalimpsestLearnConcept", model=loader["MODEL"], clip=loader["CLIP"], images=images,
                             trainable=word, steps=200, batch=4)
            read = {"clip": learned["CLIP"], "text": f"a photo of embedding:{NAME} on a brick background"}
            prompt = (c.node("CLIPTextEncode", **read) if kind == "PalimpsestNewWord" else
                      c.node("PalimpsestConceptPrompt", concept=learned["concept"], **read))
            c.column(300)
            sampled(c, title, loader["MODEL"], prompt["CONDITIONING"], null, empty["LATENT"], loader["VAE"], "word")


TITLE = "Learn a word from four pictures (Textual Inversion)"
EXAMPLE = Example("Textual Inversion", workflows=(Drawing(TITLE, draw, 402, shows=("Miniature Subject", *WORDS)),))
