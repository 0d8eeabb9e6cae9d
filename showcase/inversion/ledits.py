"""LEDITS++'s inversion, shown and measured."""
from ...inversion.ledits import METHOD
from .. import Example
from ..drawing import CFG
from ..pictures import both
from ..rows import InversionRow

EXAMPLE = Example(
    "LEDITS++, the inversion",
    pages={"PalimpsestLEDITSInvert": both("PalimpsestLEDITSInvert", 30, CFG, 0.15)},
    inversions=(InversionRow("LEDITS++", METHOD, 160, guided=True),),
    elsewhere="Add a concept to a picture (LEDITS++)")
