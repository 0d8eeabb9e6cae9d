"""Style Aligned, shown and measured."""
from ...nodes.attention.style_aligned import PalimpsestStyleAligned
from .. import Example
from ..drawing import Workflow, inverted, other_picture
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, output


def styled(c, p, inversion):
    other = other_picture(c, p, "exact target", "target text", seed=2, kind="style")
    return c.node("PalimpsestStyleAligned", model=p.loader["MODEL"], inversion=other["inversion"])


WORKFLOW = Workflow(
    "In the style of another picture (Style Aligned)",
    "2. Load your second picture in place of *The other picture*, and set *Its size* to the same size. On SD: CFG 10 "
    "(paper), and an empty latent with noise.\n\nAttention is shared with the other picture's inversion.",
    styled, 190, kind="background", seed=0, target="source")


def page(c, label):
    p = scene(c, WORKFLOW.seed, WORKFLOW.kind)
    reference, _, other = second_picture(c, p, None, 2, "style", "exact target")
    editor = c.node("PalimpsestStyleAligned", model=p.loader["MODEL"], inversion=other["inversion"])
    show(c, "reference", reference["exact target"])
    sample(c, label, p, inverted(c, p), WORKFLOW.target, WORKFLOW.cfg, model=editor["MODEL"])


def edit(scenes, model, inversion):
    return output(PalimpsestStyleAligned, model=model, inversion=scenes.other(scenes.others, inversion))


EXAMPLE = Example(
    "Style Aligned",
    workflows=(WORKFLOW,),
    pages={"PalimpsestStyleAligned": page},
    scenes=(SceneRow("Style Aligned (another picture)", edit, 84, kinds=("style",)),),
    costs=(CostRow("Style Aligned", lambda b: b.other(PalimpsestStyleAligned, inversion=b.inversion), 90),))
