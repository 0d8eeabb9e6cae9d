"""LEDITS++."""
from palimpsest.editing.run import attach
from palimpsest.editing.word_maps import nearest_resolution, word_layers_of
from palimpsest.guidance.ledits import LEDITS, Grounded
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS

from editors.case import EditorCase
from runs import prompt


def ledits(case, model=None):
    model = model or case.model
    if case.clip:
        return PalimpsestLEDITS.execute(model, case.clip, "a hat", "add", 5.0, 0.0, 1.0, 0.7).result[0]
    hat = prompt(case, "a hat")
    return attach(model, LEDITS((Grounded(hat, 5.0, 0.0, 1.0, 0.7, tokens=hat[0][1]["palimpsest_tokens"]),),
                                resolution=nearest_resolution(model, 0.25), layers=word_layers_of(model)))


CASES = (EditorCase("ledits", ledits, 180, words=True, concepts=1, transformer="chroma"),)
