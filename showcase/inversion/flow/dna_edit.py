"""DNAEdit, shown and measured."""
from ....inversion.flow.dna_edit import METHOD
from ... import Example
from ...pictures import both
from ...rows import InversionRow, SceneRow, as_it_is

CFG, START = 3.0, 0.3  # of the miniature
EXAMPLE = Example(
    "DNAEdit",
    pages={"PalimpsestDNAEditInvert": both("PalimpsestDNAEditInvert", 20, CFG, START, model="Flux")},
    inversions=(InversionRow("DNAEdit", METHOD, 184),),
    scenes=(SceneRow("DNAEdit (start 0.3)", as_it_is, 164, on="DNAEdit", cfg=CFG, start=START, only="flow"),),
    elsewhere="On the canvas it stands where FireFlow Invert does, and needs no editor.")
