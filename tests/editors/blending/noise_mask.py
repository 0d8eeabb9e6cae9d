"""Noise Mask."""
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask

from editors.case import EditorCase


def noise_mask(case, model=None):
    return PalimpsestNoiseMask.execute(model or case.model, case.inversion, "source", 0.0, 1.0, 0.5).result[0]


CASES = (EditorCase("noise mask", noise_mask, 210, words=True, concepts=1, joint=True),)
