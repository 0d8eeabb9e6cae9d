"""SEGA Guidance."""
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance

from editors.case import EditorCase
from runs import prompt


def sega(case, model=None):
    """Two concepts, one of them removed. They act from the first and from the second of three steps."""
    for text, direction, warmup in (("a hat", "add", 0.0), ("fur", "remove", 0.3)):
        model = PalimpsestSEGAGuidance.execute(model or case.model, prompt(case, text), direction, 5.0, warmup, 1.0,
                                               0.9, 1.0, 0.1, 0.4).result[0]
    return model


CASES = (EditorCase("sega", sega, 170, words=True, concepts=2, transformer="sd3"),)
