"""Extended Attention."""
from palimpsest.nodes.attention.add_it import PalimpsestExtendedAttention

from editors.case import CROSS_END, EditorCase


def extended(case, model=None):
    return PalimpsestExtendedAttention.execute(model or case.model, case.inversion, 1.05, 0.0, CROSS_END, CROSS_END, "",
                                               False).result[0]


CASES = (EditorCase("extended attention", extended, 300, features=True, joint=True),)
