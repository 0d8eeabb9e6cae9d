"""BDIA, shown and measured."""
from ...inversion.bdia import METHOD
from .. import Example
from ..pictures import returns
from ..rows import InversionRow


def settings(steps):
    return {"gamma": 1.0 if steps > 20 else 0.5}


EXAMPLE = Example(
    "BDIA",
    pages={"PalimpsestBDIAInvert": returns("PalimpsestBDIAInvert", 10, gamma=0.5)},
    inversions=(InversionRow("BDIA", METHOD, 130, settings=settings, guided=True),),
    elsewhere="Change a word from an exact inversion (EDICT)")
