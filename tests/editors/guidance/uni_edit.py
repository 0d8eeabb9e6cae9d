"""Uni-Edit Guidance."""
from palimpsest.nodes.guidance.uni_edit import PalimpsestUniEditGuidance

from editors.case import EditorCase


def uni_edit(case, model=None):
    return PalimpsestUniEditGuidance.execute(model or case.model, case.source, 1.0).result[0]


CASES = (EditorCase("uni edit", uni_edit, bare=True, concepts=1, joint=True),)
