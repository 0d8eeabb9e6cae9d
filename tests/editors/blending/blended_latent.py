"""Blended Latent."""
from palimpsest.nodes.blending.blended_latent import PalimpsestBlendedLatent

from editors.case import EditorCase, quarter


def shrinking(case, model=None):
    """Grows the mask by two cells at the first of three steps and by one at the second."""
    return PalimpsestBlendedLatent.execute(model or case.model, 2, 0.6, case.inversion, quarter(case)).result[0]


CASES = (EditorCase("shrinking", shrinking, 190, bare=True, joint=True),)
