"""Attention maps of words, shown."""
from .. import Example
from ..drawing import BLUE, GREEN, SCENE, SEEN, VIOLET, WORDS, Drawing, picture_and_words
from ..pictures import scene, show_mask, stored

ABOUT = """2. In *Prompt Edit*, the source says what the picture **shows**. The target is not used.
3. In *Attention Mask*, name words of the source. `threshold` 0 is automatic, higher is tighter. `grow` and `blur` \
soften the edge, in latent cells.

The mask fits any node that takes one: *Latent Blend (Inversion)*, *ImageCompositeMasked*, \
*Set Latent Noise Mask*."""


def draw(c):
    """Where a model sees each word of a picture's prompt, and a mask made from it."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 480, SCENE, target=False)
        loader, words = p.loader, p.words
    with c.group("2  Invert", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=loader["MODEL"], source=words["source"],
                           latent=p.encoded["LATENT"])
        attention = c.node("PalimpsestAttentionStore", model=loader["MODEL"], inversion=inversion["inversion"],
                           prompt_edit=words["prompt edit"])
    with c.group("3  See, and mask", VIOLET):
        c.column(720)
        c.node("PalimpsestAttentionHeatmap", None, 280, attention=attention["ATTENTION"], image=p.picture,
               words=SEEN)
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 280, attention=attention["ATTENTION"], words=WORDS,
                      grow=1, blur=0.5, image=p.picture)
        c.column(290)
        c.node("MaskPreview", "The mask", 280, mask=mask["MASK"])


def heatmap(c, label, **settings):
    p = scene(c, source=None)
    c.node("PalimpsestAttentionHeatmap", attention=stored(c, p, **settings)["ATTENTION"], image=p.picture,
           words="green, star, background")


def store(c, label):
    heatmap(c, label, resolution=1.0)


def masked(c, label):
    p = scene(c)
    attention = stored(c, p, resolution=1.0)["ATTENTION"]
    mask = c.node("PalimpsestAttentionMask", attention=attention, words=WORDS, image=p.picture)
    show_mask(c, f"mask of “{WORDS}”", mask["MASK"])


EXAMPLE = Example(
    "Attention maps of words",
    workflows=(Drawing("Attention maps to a mask", draw, 20),),
    pages={"PalimpsestAttentionStore": store, "PalimpsestAttentionHeatmap": heatmap, "PalimpsestAttentionMask": masked})
