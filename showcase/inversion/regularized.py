"""Regularized inversion, shown and measured."""
from ...inversion.regularized import METHOD
from .. import Example
from ..drawing import inverted
from ..pictures import decoded, scene
from ..rows import InversionRow


def page(c, label):
    p = scene(c, 5)
    decoded(c, "DDIM Invert's noise", p, inverted(c, p)["noise"])
    decoded(c, "its noise", p, inverted(c, p, "PalimpsestRegularizedInvert", lambda_ac=2, lambda_kl=2)["noise"])


EXAMPLE = Example(
    "Regularized inversion (pix2pix-zero)",
    pages={"PalimpsestRegularizedInvert": page},
    inversions=(InversionRow("Regularized (pix2pix-zero)", METHOD, 60),),
    elsewhere="It stands in DDIM Invert's place in any workflow.")
