"""CycleDiffusion, shown and measured."""
from ...nodes.inversion.cycle_diffusion import PalimpsestCycleDiffusionInvert
from .. import Example
from ..drawing import CFG
from ..pictures import both
from ..rows import InversionRow

EXAMPLE = Example(
    "CycleDiffusion",
    pages={"PalimpsestCycleDiffusionInvert": both("PalimpsestCycleDiffusionInvert", 50, CFG, 0.15)},
    inversions=(InversionRow("CycleDiffusion", PalimpsestCycleDiffusionInvert, 170),),
    elsewhere="Edit-friendly noise (DDPM)")
