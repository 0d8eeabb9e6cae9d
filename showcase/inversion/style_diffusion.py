"""StyleDiffusion, shown and measured."""
from ...nodes.inversion.style_diffusion import PalimpsestStyleDiffusionInvert
from .. import Example
from ..pictures import HIGH, edits
from ..rows import InversionRow

EXAMPLE = Example(
    "StyleDiffusion",
    pages={"PalimpsestStyleDiffusionInvert": edits("PalimpsestStyleDiffusionInvert", cfg=HIGH)},
    inversions=(InversionRow("StyleDiffusion", PalimpsestStyleDiffusionInvert, 100),),
    elsewhere="Edit at high guidance (null-text)")
