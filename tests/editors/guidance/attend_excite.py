"""Attend-and-Excite."""
from palimpsest.nodes.guidance.attend_excite import PalimpsestAttendExcite

from editors.case import EditorCase, shared_word


def excite(case, model=None):
    """One move at the first of three steps, and at most two more at the second."""
    return PalimpsestAttendExcite.execute(model or case.model, shared_word(case), 100.0, 0.5, "0.2: 0.9", 2,
                                          0.25).result[0]


CASES = (EditorCase("excite", excite, 130, moves=True, joint=True, finds=True),)
