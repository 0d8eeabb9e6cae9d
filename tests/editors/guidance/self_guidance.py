"""Self-Guidance."""
from palimpsest.nodes.guidance.self_guidance import PalimpsestSelfGuidance

from editors.case import CROSS_END, EditorCase, shared_word
from joint import JOINT


def guide(case, model=None):
    """An object that moves to the right. What it looks like is not known on a transformer."""
    appearance = 0.0 if case.family in JOINT else 0.05
    return PalimpsestSelfGuidance.execute(model or case.model, case.inversion, shared_word(case), 0.3, 0.0, 1.0, "",
                                          50.0, appearance, 0.0, CROSS_END, 0.5).result[0]


CASES = (EditorCase("guide", guide, 150, reads=True, words=True, joint=True, finds=True),)
