"""Uni-Inv, shown and measured."""
from ....inversion.flow.uni_inv import METHOD
from ... import Example
from ...pictures import returns
from ...rows import InversionRow

EXAMPLE = Example(
    "Uni-Inv",
    pages={"PalimpsestUniInvert": returns("PalimpsestUniInvert", 10, schedule={"scheduler": "simple"},
                                          model="Flux")},
    inversions=(InversionRow("Uni-Inv", METHOD, 45),),
    elsewhere="Change a word, with no mask (Uni-Edit)")
