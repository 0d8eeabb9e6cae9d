"""RF-Inversion, shown and measured."""
from ....inversion.flow.rf_inversion import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "RF-Inversion",
    pages={"PalimpsestRFInversionInvert": returns("PalimpsestRFInversionInvert", 20, schedule={"scheduler": "simple"})},
    inversions=(InversionRow("RF-Inversion", METHOD, 48),),
    elsewhere="It is made for flow models, and the pack ships none. On the canvas it stands where DDIM Invert does.")
