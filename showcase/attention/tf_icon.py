"""TF-ICON, shown and measured."""
from ...nodes.attention.tf_icon import PalimpsestInjectComposite
from .. import Example
from ..drawing import Workflow, encoded, inverted, other_picture
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, alone, output


def both(c, p):
    """The inversions of both pictures."""
    p.other = other_picture(c, p, seed=4, kind="pose")
    return inverted(c, p)


def composed(c, p, inversion):
    return c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  reference=p.other["inversion"], mask=p.mask)


WORKFLOW = Workflow(
    "Insert another picture's object (TF-ICON)",
    "2. Load your second picture in place of *The other picture*. Draw a MASK of the object. On SD: CFG 2.5 to "
    "5.\n\nBoth inversions share one self-attention (TF-ICON).",
    composed, 200, invert=both, kind="add", seed=0, cfg=2.5, masked=True)


def page(c, label):
    p = scene(c, 14, "add")
    other, _, reference = second_picture(c, p, None, 2, "add", "exact target")
    inversion = inverted(c, p)
    editor = c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                    reference=reference["inversion"], mask=other["edit mask"])
    show(c, "reference", other["exact target"])
    whole = encoded(c, p, "whole", "a photo of a yellow star and a white circle on a brick background")
    sample(c, label, p, inversion, whole["CONDITIONING"], WORKFLOW.cfg, model=editor["MODEL"])


def edit(scenes, model, inversion):
    return output(PalimpsestInjectComposite, model=model, inversion=inversion, mask=scenes.masks,
                  reference=scenes.other(scenes.objects, inversion))


EXAMPLE = Example(
    "TF-ICON",
    workflows=(WORKFLOW,),
    pages={"PalimpsestInjectComposite": page},
    scenes=(SceneRow("Inject Composite (true mask, true object)", edit, 115, kinds=("add",), cfg=WORKFLOW.cfg),),
    costs=(CostRow("Inject Composite", alone(PalimpsestInjectComposite), 110),))
