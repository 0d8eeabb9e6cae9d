"""FireFlow, shown and measured."""
from ....inversion.flow.fireflow import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "FireFlow",
    pages={"PalimpsestFireFlowInvert": returns("PalimpsestFireFlowInvert", 10, schedule={"scheduler": "simple"},
                                               model="Flux")},
    inversions=(InversionRow("FireFlow", METHOD, 47),),
    elsewhere="Change a word on a flow model (FireFlow)")
