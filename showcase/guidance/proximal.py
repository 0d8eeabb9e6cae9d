"""Proximal guidance, shown and measured."""
from ...nodes.guidance.proximal import PalimpsestProximalGuidance
from .. import Example
from ..drawing import injected, inverted
from ..pictures import HIGH, sample, scene
from ..rows import CostRow, SceneRow, alone, inject, on_inversion


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p, "PalimpsestNegativePromptInvert")
    kept = injected(c, p, inversion)
    near = c.node("PalimpsestProximalGuidance", model=kept["MODEL"], inversion=inversion["inversion"])
    sample(c, "Attention Inject", p, inversion, "target", HIGH, model=kept["MODEL"])
    sample(c, label, p, inversion, "target", HIGH, model=near["MODEL"])


EXAMPLE = Example(
    "Proximal guidance",
    pages={"PalimpsestProximalGuidance": page},
    scenes=(SceneRow("Inject + Proximal Guidance", on_inversion(PalimpsestProximalGuidance, inject), 40),),
    costs=(CostRow("Proximal Guidance", alone(PalimpsestProximalGuidance), 150),),
    elsewhere="Change a word at high guidance, nothing learned (Negative Prompt)")
