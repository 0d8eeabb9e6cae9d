"""OIR, shown and measured."""
from ...nodes.blending.object_aware import PalimpsestObjectAwareBlend
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion


def blended(c, p, inversion):
    return c.node("PalimpsestObjectAwareBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  mask=p.mask, start=0.2)


WORKFLOW = Workflow(
    "Change only what you paint (Object-Aware Blend)",
    "2. Draw your own MASK in place of the scene's. Chain one node per object. On SD: CFG 7.5.\n\nEach object is "
    "edited from its own step on. Use a late step for a colour, an early one for a shape.",
    blended, 140, kind="object", seed=0, hard=True, masked=True)
EXAMPLE = Example(
    "OIR",
    workflows=(WORKFLOW,),
    pages={"PalimpsestObjectAwareBlend": before_and_after(WORKFLOW, kind="pose", seed=12, hard=False)},
    scenes=(SceneRow("Object-Aware Blend (true mask)", on_inversion(PalimpsestObjectAwareBlend, masked=True), 110),),
    costs=(CostRow("Object-Aware Blend", alone(PalimpsestObjectAwareBlend), 130),))
