"""Attention Re-weight."""
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight

from editors.case import CROSS_END, EditorCase, quarter, shared_word


def weigh(case, model=None):
    """A word's factor. The word may act in one quarter only."""
    word = shared_word(case)
    return PalimpsestAttentionReweight.execute(model or case.model, f"{word}: 3", word, "", 0.3, 0.0, CROSS_END,
                                               mask=quarter(case)).result[0]


CASES = (EditorCase("weigh", weigh, 250, acts=True, joint=True, finds=True),)
