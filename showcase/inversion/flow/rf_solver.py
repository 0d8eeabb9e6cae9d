"""RF-Solver, shown and measured."""
from ....inversion.flow.rf_solver import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "RF-Solver",
    pages={"PalimpsestRFSolverInvert": returns("PalimpsestRFSolverInvert", 10, schedule={"scheduler": "simple"})},
    inversions=(InversionRow("RF-Solver", METHOD, 46),),
    elsewhere="It is made for flow models, and the pack ships none. On the canvas it stands where DDIM Invert does.")
