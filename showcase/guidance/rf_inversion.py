"""RF-Inversion Guide, shown and measured."""
from ...nodes.guidance.rf_inversion import PalimpsestRFInversionGuide
from .. import Example
from ..drawing import inverted
from ..pictures import ALONE, sample, scene
from ..rows import CostRow, SceneRow, alone, on_inversion

STEPS = {"steps": 28, "scheduler": "simple"}


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p, "PalimpsestRFInversionInvert", **STEPS)
    guided = c.node("PalimpsestRFInversionGuide", model=p.loader["MODEL"], inversion=inversion["inversion"])
    sample(c, ALONE, p, inversion, "target", 3.0)
    sample(c, label, p, inversion, "target", 3.0, model=guided["MODEL"])


EXAMPLE = Example(
    "RF-Inversion Guide",
    pages={"PalimpsestRFInversionGuide": page},
    scenes=(SceneRow("RF-Inversion Guide", on_inversion(PalimpsestRFInversionGuide), 145),),
    costs=(CostRow("RF-Inversion Guide", alone(PalimpsestRFInversionGuide), 155),),
    elsewhere="It is made for flow models, and the pack ships none. It stands between the MODEL and Replay.")
