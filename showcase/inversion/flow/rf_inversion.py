"""RF-Inversion, shown and measured."""
from ....inversion.flow.rf_inversion import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "RF-Inversion",
    pages={"PalimpsestRFInversionInvert": returns("PalimpsestRFInversionInvert", 20, schedule={"scheduler": "simple"},
                                                  model="Flux")},
    inversions=(InversionRow("RF-Inversion", METHOD, 48),),
    elsewhere="Change a picture as a whole on a flow model (RF-Inversion)")
