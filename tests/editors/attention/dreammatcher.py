"""DreamMatcher."""
from palimpsest.nodes.attention.dreammatcher import PalimpsestDreamMatcher

from editors.case import CROSS_END, EditorCase, shared_word


def matched(case, model=None):
    """Its own picture as the reference."""
    return PalimpsestDreamMatcher.execute(model or case.model, case.inversion, shared_word(case), 0.0, CROSS_END, "",
                                          2.0, 0.05, True).result[0]


CASES = (EditorCase("dreammatcher", matched, features=True, later=True, null_too=True, words=True, finds=True),)
