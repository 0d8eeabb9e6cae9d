"""Mid-Step Features at the target's own levels, with and without the words that both prompts have."""
from palimpsest.editing.layers import self_attention_layers
from palimpsest.nodes.attention.reflex import PalimpsestMidStepFeatures

from editors.case import CROSS_END, SELF_END, EditorCase


def mid_step(case, model=None, edit=None, self_end=CROSS_END):
    layers = ", ".join(sorted({p.section for p in self_attention_layers(case.model.model.diffusion_model)}))
    return PalimpsestMidStepFeatures.execute(model or case.model, case.inversion, CROSS_END, self_end, CROSS_END, 0.0,
                                             4, 2.0, "", layers, False, edit).result[0]


def mid_step_words(case, model=None):
    return mid_step(case, model, case.edit, SELF_END)


CASES = (EditorCase("mid-step features", mid_step, 310, features=True, words=True, joint=True),
         EditorCase("mid-step words", mid_step_words, 320, reads=True, acts=True, words=True, joint=True, finds=True))
