"""RF-Inversion Guide, shown and measured."""
from functools import partial

from ...nodes.guidance.rf_inversion import PalimpsestRFInversionGuide
from .. import Example
from ..drawing import Workflow, inverted
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion


def drawn_back(c, p, inversion):
    return c.node("PalimpsestRFInversionGuide", model=p.loader["MODEL"], inversion=inversion["inversion"], end=END)


END = 0.6  # of the miniature
WORKFLOW = Workflow(
    "Change a picture as a whole on a flow model (RF-Inversion)",
    "2. On Flux: 28 steps, CFG 1, an empty source, a FluxGuidance of 0 behind it and of 3.5 behind the target, *end* "
    "0.24.\n\n"
    "The way back is drawn to fresh noise, so the model is free to paint; the guide draws its first steps to the "
    "picture. Later ends and a higher eta keep more.",
    drawn_back, 68, invert=partial(inverted, kind="PalimpsestRFInversionInvert", steps=28), model="Flux")
EXAMPLE = Example(
    "RF-Inversion Guide",
    workflows=(WORKFLOW,),
    pages={"PalimpsestRFInversionGuide": before_and_after(WORKFLOW)},
    scenes=(SceneRow("RF-Inversion Guide", on_inversion(PalimpsestRFInversionGuide), 145),),
    costs=(CostRow("RF-Inversion Guide", alone(PalimpsestRFInversionGuide), 155),))
