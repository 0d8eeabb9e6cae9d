"""Latent Blend with a mask and with words, which is also chained with Attention Inject in either order."""
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

from editors.attention.p2p import inject
from editors.case import EditorCase, quarter, shared_word, store


def blend(case, model=None):
    """A mask of one quarter and a soft cell, that begins at the second of three steps."""
    mask = quarter(case)
    mask[:, -8:, -8:] = 0.5
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, "", "", 0.3, mask=mask).result[0]


def blend_words(case, model=None):
    """Random nets give words flat maps, so only a high threshold makes a mask of a part of the picture."""
    word = shared_word(case)
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, word, word, 0.95,
                                         attention=store(case)).result[0]


def inject_then_blend(case, model=None):
    return blend_words(case, inject(case, model))


def blend_then_inject(case, model=None):
    return inject(case, blend_words(case, model))


CASES = (EditorCase("blend", blend, 40, bare=True, joint=True),
         EditorCase("blend by words", blend_words, 50, words=True, joint=True, finds=True),
         EditorCase("inject, blend", inject_then_blend, 60, reads=True, acts=True, words=True, joint=True, finds=True),
         EditorCase("blend, inject", blend_then_inject, 70, reads=True, acts=True, words=True, joint=True, finds=True))
