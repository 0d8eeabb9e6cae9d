"""FireFlow, shown and measured."""
from ....inversion.flow.fireflow import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "FireFlow",
    pages={"PalimpsestFireFlowInvert": returns("PalimpsestFireFlowInvert", 10, schedule={"scheduler": "simple"})},
    inversions=(InversionRow("FireFlow", METHOD, 47),),
    elsewhere="It is made for flow models, and the pack ships none. On the canvas it stands where DDIM Invert does.")
