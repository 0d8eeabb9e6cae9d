"""DNAEdit, shown and measured."""
from ....inversion.flow.dna_edit import METHOD
from ... import Example
from ...pictures import both
from ...rows import InversionRow

EXAMPLE = Example(
    "DNAEdit",
    pages={"PalimpsestDNAEditInvert": both("PalimpsestDNAEditInvert", 20, 2.3, 0.0)},
    inversions=(InversionRow("DNAEdit", METHOD, 184),),
    elsewhere="It is made for flow models, and the pack ships none. On the canvas it stands where DDIM Invert does.")
