"""Cross-image attention, shown and measured."""
from ...nodes.attention.cross_image import PalimpsestCrossImageAttention
from .. import Example
from ..drawing import TOO_SMALL
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, output

STRUCTURE, APPEARANCE = (9, "style"), (12, "colour")


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
    elsewhere=TOO_SMALL,
    pages={"PalimpsestCrossImageAttention": page},
    scenes=(SceneRow("Cross-Image Attention (another picture)", edit, 85, kinds=("colour", "material"), cfg=1.0),),
    costs=(CostRow("Cross-Image Attention",
                   lambda b: b.other(PalimpsestCrossImageAttention, appearance=b.inversion), 100),))
