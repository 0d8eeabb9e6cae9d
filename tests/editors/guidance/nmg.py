"""Noise Map Guidance."""
from palimpsest.nodes.guidance.nmg import PalimpsestNoiseMapGuidance

from editors.case import EditorCase


def noise_map(case, model=None):
    return PalimpsestNoiseMapGuidance.execute(model or case.model, case.inversion, 0.005).result[0]


CASES = (EditorCase("noise map", noise_map, 260, moves=True, words=True, joint=True),)
