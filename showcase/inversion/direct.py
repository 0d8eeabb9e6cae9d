"""Direct inversion, shown and measured."""
from ...nodes.inversion.ddim import PalimpsestDDIMInvert
from ...nodes.inversion.direct import PalimpsestDirectInvert
from .. import Example
from ..pictures import HIGH, returns
from ..rows import InversionRow

EXAMPLE = Example(
    "Direct (PnP) inversion",
    pages={"PalimpsestDirectInvert": returns("PalimpsestDirectInvert", 20, HIGH, cfg=HIGH)},
    inversions=(InversionRow("DDIM + reference (= Direct inversion)", PalimpsestDDIMInvert, 20, source="re-read"),
                InversionRow("Direct (offsets)", PalimpsestDirectInvert, 140, guided=True, edits=False)),
    elsewhere="An exact inversion, with its own sampler (EDICT)")
