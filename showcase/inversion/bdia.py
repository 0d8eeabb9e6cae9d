"""BDIA, shown and measured."""
from ...nodes.inversion.bdia import PalimpsestBDIAInvert
from .. import Example
from ..pictures import returns
from ..rows import InversionRow


def settings(steps):
    return {"gamma": 1.0 if steps > 20 else 0.5}


EXAMPLE = Example(
    "BDIA",
    pages={"PalimpsestBDIAInvert": returns("PalimpsestBDIAInvert", 10, gamma=0.5)},
    inversions=(InversionRow("BDIA", PalimpsestBDIAInvert, 130, settings=settings, guided=True),),
    elsewhere="An exact inversion, with its own sampler (EDICT)")
