"""StyleDiffusion, shown and measured."""
from ...inversion.style_diffusion import METHOD
from .. import Example
from ..pictures import HIGH, edits
from ..rows import InversionRow

EXAMPLE = Example(
    "StyleDiffusion",
    pages={"PalimpsestStyleDiffusionInvert": edits("PalimpsestStyleDiffusionInvert", cfg=HIGH)},
    inversions=(InversionRow("StyleDiffusion", METHOD, 100),),
    elsewhere="Change a word at high guidance (Null-Text)")
