"""MagicRemover."""
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover

from editors.case import CROSS_END, EditorCase, quarter, shared_word


def remove(case, model=None):
    """An object in one quarter."""
    return PalimpsestMagicRemover.execute(model or case.model, case.inversion, shared_word(case), 0.3, 1.0, 0.0,
                                          CROSS_END, mask=quarter(case)).result[0]


CASES = (EditorCase("remove", remove, 160, reads=True, acts=True, null_too=True, moves=True, joint=True,
                    finds=True),)
