"""Free-Prompt Edit."""
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit

from editors.case import CROSS_END, EditorCase


def free_prompt(case, model=None):
    return PalimpsestFreePromptEdit.execute(model or case.model, case.inversion, 0.0, CROSS_END, "").result[0]


CASES = (EditorCase("free prompt", free_prompt, 110, features=True, joint=True),)
