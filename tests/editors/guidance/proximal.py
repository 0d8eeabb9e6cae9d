"""Proximal Guidance."""
from palimpsest.nodes.guidance.proximal import PalimpsestProximalGuidance

from editors.case import EditorCase


def proximal(case, model=None):
    return PalimpsestProximalGuidance.execute(model or case.model, case.inversion, "l0", 0.7, 0.1, 0.5, 1).result[0]


CASES = (EditorCase("proximal", proximal, guided=True),)
