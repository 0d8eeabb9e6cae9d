"""Concept Attention, shown."""
from .. import Example
from ..drawing import BLUE, GREEN, VIOLET, Drawing, picture_and_words
from ..pictures import scene

ABOUT = """2. In *Prompt Edit*, the source says what the picture **shows**. The target is not used.
3. In *Concept Attention*, name what you look for and what is around it, with commas between: *cat, sofa, wall*. They \
need not stand in the sentence. On Flux leave `layers` empty.
4. Run. *Attention Heatmap* shows each concept, *Attention Mask* takes those that you write there.

The mask fits any node that takes one: *Latent Blend (Inversion)*, *Feature Share* (KV-Edit), *FlowEdit Invert*."""
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


EXAMPLE = Example(
    "ConceptAttention",
    workflows=(Drawing("Mask from concepts on a flow model (Concept Attention)", draw, 21,
                       shows=("Miniature Scene", "The mask", "Attention Heatmap")),),
    pages={"PalimpsestConceptAttention": page})
