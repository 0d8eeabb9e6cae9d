"""RF-Solver, shown and measured."""
from ....inversion.flow.rf_solver import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "RF-Solver",
    pages={"PalimpsestRFSolverInvert": returns("PalimpsestRFSolverInvert", 10, schedule={"scheduler": "simple"},
                                               model="Flux")},
    inversions=(InversionRow("RF-Solver", METHOD, 46),),
    elsewhere="Change a word on a flow model (FireFlow)")
