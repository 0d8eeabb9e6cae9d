"""Concept Attention, shown."""
from .. import Example, folds
from ..drawing import BLUE, GREEN, VIOLET, Drawing, picture_and_words
from ..folds import Blueprint
from ..pictures import scene

ABOUT = """2. In *Concept Attention*, name what you look for and what is around it, with commas between: *cat, sofa, \
wall*. They need not stand in the sentence. On Flux leave `layers` empty.
3. Run. *Attention Heatmap* shows each concept, *Attention Mask* takes those that you write there.

The mask fits any node that takes one: *Latent Blend (Inversion)*, *Feature Share* (KV-Edit), *ImageCompositeMasked*."""
TITLE = "Mask from concepts on a flow model (Concept Attention)"
PICTURE = {"seed": 0, "kind": "colour"}
THING, AROUND = "heart", "background"


def read(c, p, inversion):
    return c.node("PalimpsestConceptAttention", model=p.loader["MODEL"], clip=p.loader["CLIP"],
                  inversion=inversion["inversion"], concepts=f"{THING}, {AROUND}", layers="d")["ATTENTION"]


def draw(c):
    """Where a flow model sees things that you name, and a mask of one of them."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 400, PICTURE, target=False, model="Flux")
    with c.group("2  Invert", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=p.loader["MODEL"], source=p.words["source"],
                           latent=p.encoded["LATENT"], steps=20, scheduler="simple")
        attention = read(c, p, inversion)
    c.row()
    with c.group("3  See, and mask", VIOLET):
        c.column(720)
        c.node("PalimpsestAttentionHeatmap", None, 460, attention=attention, image=p.picture)
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 280, attention=attention, words=THING, image=p.picture)
        c.column(290)
        c.node("MaskPreview", "The mask", 280, mask=mask["MASK"])


def page(c, label):
    p = scene(c, **PICTURE, model="Flux", source=None)
    attention = read(c, p, c.node("PalimpsestDDIMInvert", model=p.loader["MODEL"], source=p.words["source"],
                                  latent=p.encoded["LATENT"], steps=20, scheduler="simple"))
    c.node("PalimpsestAttentionHeatmap", attention=attention, image=p.picture)


def mask_from_concepts(c):
    """Where the model sees things that are named, as a mask of the original's size and as heat maps."""
    p = folds.picture_and_words(c, wanted=None)
    concepts, words = c.asks("things in it", ""), c.asks("which to mask", "")
    with c.group("2  Invert, and find the things", GREEN):
        c.column(290)
        source = c.node("FluxGuidance", conditioning=p.words["source"], guidance=1.0)["CONDITIONING"]
        inversion = c.node("PalimpsestDDIMInvert", model=p.model, source=source, latent=p.latent,
                           steps=c.asks(folds.STEPS, 20), scheduler="simple")
        attention = c.node("PalimpsestConceptAttention", model=p.model, clip=p.clip, inversion=inversion["inversion"],
                           concepts=concepts)["ATTENTION"]
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 240, attention=attention, words=words, image=p.picture,
                      **{name: c.asks(name, value) for name, value in folds.EDGE.items()})["MASK"]
        c.column(400)
        maps = c.node("PalimpsestAttentionHeatmap", None, 560, attention=attention, image=p.picture)
    with c.group("3  Mask at full size", VIOLET):
        c.column(290)
        c.gives("mask", folds.full_mask(c, mask, c.node("GetImageSize", image=p.image)))
    c.gives("heat maps", maps["IMAGE"])


BLUEPRINT = Blueprint(
    "Mask from Words (Flux, Qwen, SD3)",
    "A mask of things that you name, for inpainting or compositing. Name all that the picture has, and which of it to "
    "mask. It is the sight of the checkpoint itself: no other model is needed.", mask_from_concepts,
    "Conditioning & Preprocessors/Segmentation & Mask", 51)
EXAMPLE = Example(
    "ConceptAttention",
    workflows=(Drawing(TITLE, draw, 21,
                       shows=("Miniature Scene", "The mask", "Attention Heatmap")),),
    blueprints=(BLUEPRINT,),
    pages={"PalimpsestConceptAttention": page})
