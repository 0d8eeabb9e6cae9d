"""Inversion Report, shown."""
from .. import Example
from ..drawing import inverted
from ..pictures import HIGH, scene


def page(c, label):
    p = scene(c, source=None)
    c.node("PalimpsestInversionReport", model=p.loader["MODEL"], inversion=inverted(c, p)["inversion"],
           vae=p.loader["VAE"], image=p.picture, cfg=HIGH, negative=p.null["CONDITIONING"])


EXAMPLE = Example("Inversion Report", pages={"PalimpsestInversionReport": page},
                  elsewhere="Measure and save an inversion (Fixed-Point)")
