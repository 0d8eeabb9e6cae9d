"""Blending on an inversion, shown and measured."""
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..drawing import CFG, WORDS, inverted
from ..pictures import ALONE, sample, scene, stored
from ..rows import CostRow, SceneRow, inject, on_inversion, output


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p)
    blended = c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                     attention=stored(c, p, resolution=1.0)["ATTENTION"], source_words=WORDS)
    sample(c, ALONE, p, inversion, "target", CFG)
    sample(c, label, p, inversion, "target", CFG, model=blended["MODEL"])


def by_words(b):
    return output(PalimpsestLatentBlend, model=b.injected(), inversion=b.inversion, attention=b.maps, start=0.2,
                  source_words="star", target_words="star", threshold=0.0)


EXAMPLE = Example(
    "Blending on an inversion",
    pages={"PalimpsestLatentBlend": page},
    scenes=(SceneRow("Inject + Latent Blend (true mask)", on_inversion(PalimpsestLatentBlend, inject, masked=True),
                     20),),
    costs=(CostRow("Attention Inject, Latent Blend by words", by_words, 30, large=True),),
    elsewhere="Rewrite a word, keep the rest")
