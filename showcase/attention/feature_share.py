"""Feature Share, shown and measured."""
from ...nodes.attention.feature_share import PalimpsestFeatureShare
from .. import Example
from ..drawing import CFG, inverted
from ..pictures import ALONE, sample, scene
from ..rows import CostRow, alone


def page(c, label):
    p = scene(c, seed=0, kind="object")
    inversion = inverted(c, p, "PalimpsestRFInversionInvert", steps=28, scheduler="simple", gamma=0.0)
    shared = c.node("PalimpsestFeatureShare", model=p.loader["MODEL"], inversion=inversion["inversion"],
                    preset="KV-Edit", mask=p.mask)
    sample(c, ALONE, p, inversion, "target", CFG)
    sample(c, label, p, inversion, "target", CFG, model=shared["MODEL"])


EXAMPLE = Example(
    "RF-Edit, FireFlow, Stable Flow, KV-Edit",
    pages={"PalimpsestFeatureShare": page},
    costs=(CostRow("Feature Share, values throughout", alone(PalimpsestFeatureShare, end=1.0), 75, joint=True),),
    elsewhere="It is made for flow models, and the pack ships none. It stands between the MODEL and Replay.",
    unmeasured="It is made for flow models, and the pack ships none.")
