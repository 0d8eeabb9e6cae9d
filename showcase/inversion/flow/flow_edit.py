"""FlowEdit, shown and measured."""
from ....inversion.flow.flow_edit import METHOD
from ... import Example
from ...pictures import both
from ...rows import InversionRow

EXAMPLE = Example(
    "FlowEdit",
    pages={"PalimpsestFlowEditInvert": both("PalimpsestFlowEditInvert", 20, 2.3, 0.0)},
    inversions=(InversionRow("FlowEdit", METHOD, 182, {"cfg": 1.0}),),
    elsewhere="Change an object (Edit-Friendly DDPM)")
