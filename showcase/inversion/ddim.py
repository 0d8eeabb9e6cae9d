"""DDIM inversion, shown and measured."""
from ...inversion.ddim import METHOD
from .. import Example
from ..drawing import inverted
from ..pictures import decoded, sample, scene
from ..rows import InversionRow


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p)
    decoded(c, "its noise", p, inversion["noise"])
    sample(c, "back again", p, inversion)


EXAMPLE = Example(
    "DDIM inversion",
    pages={"PalimpsestDDIMInvert": page},
    inversions=(InversionRow("DDIM", METHOD, 10),),
    elsewhere="Change a word, step by step (Prompt-to-Prompt)")
