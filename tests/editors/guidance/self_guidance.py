"""Self-Guidance."""
from palimpsest.nodes.guidance.self_guidance import PalimpsestSelfGuidance

from editors.case import CROSS_END, EditorCase, shared_word


def guide(case, model=None):
    """An object that moves to the right."""
    return PalimpsestSelfGuidance.execute(model or case.model, case.inversion, shared_word(case), 0.3, 0.0, 1.0, "",
                                          50.0, 0.05, 0.0, CROSS_END, 0.5).result[0]


CASES = (EditorCase("guide", guide, 150, reads=True, words=True, joint=True, finds=True),)
