"""MagicRemover, shown and measured."""
from ...nodes.guidance.magic_remover import PalimpsestMagicRemover
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow


def removed(c, p, inversion):
    return c.node("PalimpsestMagicRemover", model=p.loader["MODEL"], inversion=inversion["inversion"], mask=p.mask)


WORKFLOW = Workflow(
    "Take an object away (MagicRemover)",
    "2. Draw a MASK of the object, or name it in *words* with Attention Store. *What lies there* is a prompt of what "
    "should be seen there and nothing else. On SD: CFG 7.5.\n\nThe object's area is filled from its surroundings.",
    removed, 240, kind="delete", seed=1, prompt="a photo of a sky background", masked=True)
EXAMPLE = Example(
    "MagicRemover",
    workflows=(WORKFLOW,),
    pages={"PalimpsestMagicRemover": before_and_after(WORKFLOW, "the prompt alone")},
    costs=(CostRow("MagicRemover", lambda b: b.other(PalimpsestMagicRemover, words="star", attention=b.maps), 240,
                   gradient=True),))
