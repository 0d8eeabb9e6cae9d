"""Attention maps of words, shown."""
from ...miniature import SCENE
from .. import Example, folds
from ..drawing import BLUE, GREEN, VIOLET, WORDS, Drawing, picture_and_words
from ..folds import Blueprint
from ..pictures import scene, show_mask, stored

ABOUT = """2. Run. In *Attention Heatmap*, point at a word to see it. Click words to choose what the mask covers, and \
run again.
3. In *Attention Mask*, `threshold` 0 is automatic, higher is tighter. `grow` and `blur` soften the edge, in latent \
cells.

The mask fits any node that takes one: *Latent Blend (Inversion)*, *ImageCompositeMasked*, \
*Set Latent Noise Mask*."""


def draw(c):
    """Where a model sees each word of a picture's prompt, and a mask made from it."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 400, SCENE, target=False)
        loader, words = p.loader, p.words
    with c.group("2  Invert", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=loader["MODEL"], source=words["source"],
                           latent=p.encoded["LATENT"])
        attention = c.node("PalimpsestAttentionStore", model=loader["MODEL"], inversion=inversion["inversion"],
                           prompt_edit=words["prompt edit"])
    c.row()
    with c.group("3  See, and mask", VIOLET):
        c.column(720)
        seen = c.node("PalimpsestAttentionHeatmap", None, 460, attention=attention["ATTENTION"], image=p.picture,
                      words=WORDS)
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 280, attention=attention["ATTENTION"], words=seen["words"],
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


def mask_from_words(c):
    """Where the model sees the words, as a mask of the original's size and as heat maps."""
    p, words = folds.picture_and_words(c, wanted=None), c.asks("words to find", "")
    with c.group("2  Invert, and find the words", GREEN):
        folds.inverted(c, p, p.source["source"])
        folds.found(c, p, words, threshold=c.asks("threshold, 0 is automatic"), grow=c.asks("grow", folds.EDGE["grow"]),
                    blur=c.asks("blur", folds.EDGE["blur"]))
        c.column(400)
        maps = c.node("PalimpsestAttentionHeatmap", None, 560, attention=p.attention, image=p.picture, words=words)
    with c.group("3  Mask at full size", VIOLET):
        c.column(290)
        c.gives("mask", folds.full_mask(c, p.mask, c.node("GetImageSize", image=p.image)))
    c.gives("heat maps", maps["IMAGE"])


BLUEPRINT = Blueprint(
    "Mask from Words",
    "A mask of the things in a picture that you name, for inpainting or compositing. It is the sight of the checkpoint "
    "itself, SD1.x, SD2.x or SDXL: no other model is needed.", mask_from_words,
    "Conditioning & Preprocessors/Segmentation & Mask", 50)
EXAMPLE = Example(
    "Attention maps of words",
    workflows=(Drawing("Mask from words (Attention Maps)", draw, 20,
                       shows=("Miniature Scene", "The mask", "Attention Heatmap")),),
    blueprints=(BLUEPRINT,),
    pages={"PalimpsestAttentionStore": store, "PalimpsestAttentionHeatmap": heatmap, "PalimpsestAttentionMask": masked})
