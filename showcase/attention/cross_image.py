"""Cross-image attention, shown and measured."""
from ...nodes.attention.cross_image import PalimpsestCrossImageAttention
from .. import Example
from ..drawing import Workflow, other_picture
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, output

STRUCTURE, APPEARANCE = (9, "style"), (12, "colour")


def dressed(c, p, inversion):
    other = other_picture(c, p, seed=0, kind="colour")
    return c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=other["inversion"])


WORKFLOW = Workflow(
    "The looks of another picture (Cross-Image Attention)",
    "2. Load your second picture in place of *The other picture*, and set *Its size* to the same size. On SD: CFG 1, "
    "and one prompt that names what both pictures show, for both inversions and for sampling.\n\nThis picture's "
    "structure takes the other's appearance.",
    dressed, 180, seed=1, target="source")


def page(c, label):
    p = scene(c, source=None)
    text = "a photo of a star on a background"
    structure, words, inversion = second_picture(c, p, text, *STRUCTURE)
    appearance, _, other = second_picture(c, p, text, *APPEARANCE)
    editor = c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=other["inversion"])
    show(c, "structure", structure["source"])
    show(c, "appearance", appearance["source"])
    sample(c, label, p, inversion, words["source"], 1.0, model=editor["MODEL"])


def edit(scenes, model, inversion):
    return output(PalimpsestCrossImageAttention, model=model, appearance=scenes.other(scenes.others, inversion))


EXAMPLE = Example(
    "Cross-image attention",
    workflows=(WORKFLOW,),
    pages={"PalimpsestCrossImageAttention": page},
    scenes=(SceneRow("Cross-Image Attention (another picture)", edit, 85, kinds=("colour", "material"), cfg=1.0),),
    costs=(CostRow("Cross-Image Attention",
                   lambda b: b.other(PalimpsestCrossImageAttention, appearance=b.inversion), 100),))
