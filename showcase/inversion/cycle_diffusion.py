"""CycleDiffusion, shown and measured."""
from ...inversion.cycle_diffusion import METHOD
from .. import Example
from ..drawing import CFG
from ..pictures import both
from ..rows import InversionRow

EXAMPLE = Example(
    "CycleDiffusion",
    pages={"PalimpsestCycleDiffusionInvert": both("PalimpsestCycleDiffusionInvert", 50, CFG, 0.15)},
    inversions=(InversionRow("CycleDiffusion", METHOD, 170),),
    elsewhere="Change an object (Edit-Friendly DDPM)")
