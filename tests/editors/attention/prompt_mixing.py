"""Prompt Mixing."""
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing

from editors.case import CROSS_END, EditorCase, quarter


def mixing(case, model=None):
    """The source prompt's values in the target. Shapes in one quarter are preserved."""
    return PalimpsestPromptMixing.execute(model or case.model, case.source, 0.0, CROSS_END, "", "", 0.3, CROSS_END, "",
                                          inversion=case.inversion, mask=quarter(case)).result[0]


CASES = (EditorCase("mixing", mixing, 120, features=True, joint=True, finds=True),)
