"""LEDITS++, shown and measured."""
from functools import partial

from ...editing.run import attach
from ...editing.word_maps import nearest_resolution
from ...guidance.ledits import LEDITS, Grounded
from ...host.tokens import encode, tokenize_rows
from ...nodes.guidance.ledits import PalimpsestLEDITS
from .. import Example
from ..drawing import Workflow, inverted
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone
from ..rows import concept as brought


def concept(c, p, inversion):
    return c.node("PalimpsestLEDITS", model=p.loader["MODEL"], clip=p.loader["CLIP"], concept="yellow ring",
                  threshold=0.75)


WORKFLOW = Workflow(
    "Add a concept to a picture (LEDITS++)",
    "2. On SD: threshold 0.9. On SDXL: 50 steps.\n\nThe noise maps of a fast solver return the picture. The concept "
    "acts where its words' attention and its guidance agree.",
    concept, 160, invert=partial(inverted, kind="PalimpsestLEDITSInvert", steps=25), seed=5, target="source", cfg=1.0,
    exact=False)


def edit(scenes, model, inversion):
    """LEDITS++ without its node, which takes one text. Here every picture has its own."""
    texts, direction = brought(scenes)
    tokens = tokenize_rows(scenes.parts[1], texts)
    words = Grounded(encode(scenes.parts[1], tokens), -5.0 if direction == "remove" else 5.0, 0.0, 1.0, 0.75,
                     tokens=tokens)  # the threshold for the miniature's scenes
    return attach(model, LEDITS((words,), resolution=nearest_resolution(model, 0.25)))


EXAMPLE = Example(
    "LEDITS++",
    workflows=(WORKFLOW,),
    pages={"PalimpsestLEDITS": before_and_after(WORKFLOW, "source prompt alone")},
    scenes=(SceneRow("LEDITS++", edit, 150, samples="source", on="LEDITS++", cfg=1.0),),
    costs=(CostRow("LEDITS++", alone(PalimpsestLEDITS, concept="a blue star"), 180),))
