"""ReNoise, shown and measured."""
from ...inversion.renoise import DETERMINISTIC
from .. import Example
from ..pictures import returns
from ..rows import InversionRow

EXAMPLE = Example(
    "ReNoise",
    pages={"PalimpsestReNoiseInvert": returns("PalimpsestReNoiseInvert", 4, schedule={"scheduler": "simple"})},
    inversions=(InversionRow("ReNoise", DETERMINISTIC, 50, settings={"scheduler": "ddim_uniform"}),),  # as the others
    elsewhere="It stands in DDIM Invert's place in any workflow.")
