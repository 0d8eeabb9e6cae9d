"""LEDITS++."""
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS

from editors.case import EditorCase


def ledits(case, model=None):
    return PalimpsestLEDITS.execute(model or case.model, case.clip, "a hat", "add", 5.0, 0.0, 1.0, 0.7).result[0]


CASES = (EditorCase("ledits", ledits, 180, words=True, concepts=1),)
