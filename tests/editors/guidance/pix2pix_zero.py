"""Cross-Attention Guidance."""
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance

from editors.case import CROSS_END, EditorCase


def pull(case, model=None):
    return PalimpsestCrossAttentionGuidance.execute(model or case.model, case.inversion, 1.0, 0.0, CROSS_END).result[0]


CASES = (EditorCase("pull", pull, 140, reads=True, acts=True, moves=True, joint=True, finds=True),)
