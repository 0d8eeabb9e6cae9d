"""Save Inversion, shown."""
from .. import Example
from ..drawing import inverted
from ..pictures import scene


def page(c, label):
    p = scene(c)
    c.node("PalimpsestSaveInversion", label, inversion=inverted(c, p)["inversion"])


EXAMPLE = Example("Inversions on disk", pages={"PalimpsestSaveInversion": page},
                  elsewhere="Measure and save an inversion (Fixed-Point)")
