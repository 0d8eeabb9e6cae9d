"""Cross-image attention, shown and measured."""
from ...nodes.attention.cross_image import PalimpsestCrossImageAttention
from .. import Example
from ..drawing import Workflow, inverted, other_picture
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, output

APPEARANCE = {"seed": 12, "kind": "colour"}


def both(c, p):
    """The inversions of both pictures, with one prompt."""
    p.other, _ = other_picture(c, p, p.words, **APPEARANCE)
    return inverted(c, p)


def transferred(c, p, inversion):
    return c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=p.other)


WORKFLOW = Workflow(
    "Give a picture another's looks (Cross-Image Attention)",
    "2. Load the picture that gives its looks in place of *The other picture*. Write one source prompt that names what "
    "both show, such as “a photo of a horse”.\n\nThe first picture's queries look up the other's keys and values, part "
    "to matching part.",
    transferred, 205, invert=both, seed=3, target="source", cfg=1.0, exact=False)


def page(c, label):
    p = scene(c, **WORKFLOW.scene, source="structure")
    other, _, made = second_picture(c, p, p.scene["source text"], *APPEARANCE.values())
    editor = c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=made["inversion"])
    show(c, "appearance", other["source"])
    sample(c, label, p, inverted(c, p), "source", 1.0, model=editor["MODEL"])


def edit(scenes, model, inversion):
    return output(PalimpsestCrossImageAttention, model=model, appearance=scenes.other(scenes.others, inversion))


EXAMPLE = Example(
    "Cross-image attention",
    workflows=(WORKFLOW,),
    pages={"PalimpsestCrossImageAttention": page},
    scenes=(SceneRow("Cross-Image Attention (another picture)", edit, 85, kinds=("colour", "material"), cfg=1.0),),
    costs=(CostRow("Cross-Image Attention",
                   lambda b: b.other(PalimpsestCrossImageAttention, appearance=b.inversion), 100),))
