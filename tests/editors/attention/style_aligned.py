"""Style Aligned."""
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

from editors.case import CROSS_END, EditorCase


def style_aligned(case, model=None):
    return PalimpsestStyleAligned.execute(model or case.model, 0.0, CROSS_END, 0.69, 1.0, True, "", False,
                                          case.inversion).result[0]


CASES = (EditorCase("style aligned", style_aligned, 230, features=True),)
