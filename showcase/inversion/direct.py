"""Direct inversion, shown and measured."""
from ...inversion import ddim, direct
from .. import Example
from ..pictures import HIGH, returns
from ..rows import InversionRow

EXAMPLE = Example(
    "Direct (PnP) inversion",
    pages={"PalimpsestDirectInvert": returns("PalimpsestDirectInvert", 20, HIGH, cfg=HIGH)},
    inversions=(InversionRow("DDIM + reference (= Direct inversion)", ddim.METHOD, 20, source="re-read"),
                InversionRow("Direct (offsets)", direct.METHOD, 140, guided=True, edits=False)),
    elsewhere="Change a word from an exact inversion (EDICT)")
