"""Attention Inject, with a prompt aligned in two ways and with a word's factor."""
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject

from editors.case import CROSS_END, SELF_END, EditorCase, shared_word


def inject(case, model=None, mode=None, weights="", ends=""):
    """On three steps: edits self- and cross-attention at the first, cross-attention at the second."""
    edit = case.edit if mode is None else PromptEdit(tuple(align(p.source, p.target, mode) for p in case.edit.pairs))
    schedules = 0.0, CROSS_END, 0.0, SELF_END
    return PalimpsestAttentionInject.execute(model or case.model, case.inversion, edit, *schedules, 1.0, 0.5, weights,
                                             ends).result[0]


def swap(case, model=None):
    return inject(case, model)


def refine(case, model=None):
    return inject(case, model, mode="refine")


def reweight(case, model=None):
    word = shared_word(case)
    return inject(case, model, weights=f"{word}: 3", ends=f"{word}: {SELF_END}")


CASES = (EditorCase("swap", swap, 10, reads=True, acts=True, joint=True, finds=True),
         EditorCase("refine", refine, 20, reads=True, acts=True, joint=True, finds=True),
         EditorCase("reweight", reweight, 30, reads=True, acts=True, joint=True, finds=True))
