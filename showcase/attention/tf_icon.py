"""TF-ICON, shown and measured."""
from ...nodes.attention.tf_icon import PalimpsestInjectComposite
from .. import Example
from ..drawing import Workflow, encoded, inverted, other_picture
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, alone, output

OBJECT = {"seed": 13, "kind": "delete", "hard": True}  # its mask is of one of two
CFG = 2.5  # of the help page and of SceneBench


def both(c, p):
    """The inversions of both pictures."""
    p.other, p.there = other_picture(c, p, masked=True, **OBJECT)
    return inverted(c, p)


def composed(c, p, inversion):
    return c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  reference=p.other, mask=p.there)


WORKFLOW = Workflow(
    "Insert another picture's object (TF-ICON)",
    "2. Load your second picture in place of *The other picture*. Draw a MASK of the object, and name all in "
    "*Both together*. On SD: CFG 2.5 to 5; lower keeps more of the object.\n\nBoth "
    "inversions share one self-attention (TF-ICON).",
    composed, 200, invert=both, kind="add", seed=6, hard=True, cfg=1.0, exact=False, asked="Both together",
    prompt="a photo of a yellow checkered ring and a cyan square on a wall background")


def page(c, label):
    p = scene(c, 14, "add")
    other, _, reference = second_picture(c, p, None, 2, "add", "exact target")
    inversion = inverted(c, p)
    editor = c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                    reference=reference["inversion"], mask=other["edit mask"])
    show(c, "reference", other["exact target"])
    whole = encoded(c, p, "whole", "a photo of a yellow star and a white circle on a brick background")
    sample(c, label, p, inversion, whole["CONDITIONING"], CFG, model=editor["MODEL"])


def edit(scenes, model, inversion):
    return output(PalimpsestInjectComposite, model=model, inversion=inversion, mask=scenes.masks,
                  reference=scenes.other(scenes.objects, inversion))


EXAMPLE = Example(
    "TF-ICON",
    workflows=(WORKFLOW,),
    pages={"PalimpsestInjectComposite": page},
    scenes=(SceneRow("Inject Composite (true mask, true object)", edit, 115, kinds=("add",), cfg=CFG),),
    costs=(CostRow("Inject Composite", alone(PalimpsestInjectComposite), 110),))
