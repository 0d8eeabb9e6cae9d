"""Every editor by name, as its node makes it. An editor listed here gets every test of composition and purity.

Each is a function (case, model=the case's own) -> edited MODEL, for any prompts that a Case can hold.
"""
import pytest
import tiny
import torch
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.nodes.attention import PalimpsestAttentionInject, PalimpsestAttentionStore
from palimpsest.nodes.blending import PalimpsestLatentBlend
from runs import kept

STEPS, SELF_END, CROSS_END = 3, 0.5, 0.8


def shared_word(case):
    """The last source word that every prompt of the case has."""
    prompts = [tokens for pair in case.edit.pairs for tokens in (pair.source, pair.target)]
    names = [{w.name for w in tokens.words} for tokens in prompts]
    return next(w.name for w in reversed(prompts[0].words) if all(w.name in found for found in names))


@kept
def store(case):
    with torch.inference_mode():
        return PalimpsestAttentionStore.execute(case.model, case.inversion, case.edit, 0.25).result[0]


def inject(case, model=None, mode=None, weights="", ends=""):
    """On three steps: self- and cross-attention are edited at the first, cross-attention at the second."""
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


def blend(case, model=None):
    """A mask of one quarter and a soft cell, from the second of three steps on."""
    height, width = case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :height * 4, :width * 4] = 1
    mask[:, -8:, -8:] = 0.5
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, "", "", 0.3, mask=mask).result[0]


def blend_words(case, model=None):
    """Random nets give words flat maps: only a high threshold makes a mask of a part of the picture."""
    word = shared_word(case)
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, word, word, 0.95,
                                         attention=store(case)).result[0]


def inject_then_blend(case, model=None):
    return blend_words(case, inject(case, model))


def blend_then_inject(case, model=None):
    return inject(case, blend_words(case, model))


EDITORS = {"swap": swap, "refine": refine, "reweight": reweight, "blend": blend, "blend by words": blend_words,
           "inject, blend": inject_then_blend, "blend, inject": blend_then_inject}
READS = {"swap", "refine", "reweight", "inject, blend", "blend, inject"}  # the source's features, until CROSS_END
WORDS = {"blend by words", "inject, blend", "blend, inject"}  # with a threshold on words' maps
FAMILIES = list(tiny.UNETS)
each = pytest.mark.parametrize("editor, family", [(e, f) for e in EDITORS for f in FAMILIES])


def each_with(name, variants):
    """Every editor with every variant, each pair on one family in turn: all pairs of the three are met over a test."""
    return pytest.mark.parametrize(f"editor, {name}, family", [
        (e, v, FAMILIES[(i + j) % len(FAMILIES)]) for i, e in enumerate(EDITORS) for j, v in enumerate(variants)])
