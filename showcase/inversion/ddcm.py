"""DDCM and virtual inversion, shown and measured."""
from ...inversion.ddcm import METHOD
from .. import Example
from ..pictures import both
from ..rows import InversionRow

EXAMPLE = Example(
    "DDCM (virtual inversion)",
    pages={"PalimpsestDDCMInvert": both("PalimpsestDDCMInvert", 20, 2.3, 0.0, eta=0.0)},
    inversions=(InversionRow("DDCM", METHOD, 180), InversionRow("DDCM, one noise", METHOD, 181, {"eta": 0.0})),
    elsewhere="Change an object (Edit-Friendly DDPM)")
