"""Prompt mixing, shown and measured."""
from functools import partial

from ...nodes.attention.prompt_mixing import PalimpsestPromptMixing
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, output


def mixed(c, p, inversion, **settings):
    return c.node("PalimpsestPromptMixing", model=p.loader["MODEL"], mix=p.words["target"], **settings)


WORKFLOW = Workflow(
    "Vary an object's shape (Prompt Mixing)",
    "2. On SD: CFG 7.5, `start` 0.14, `end` 0.34: the miniature shapes things until its last steps.\n\nIn that part of "
    "the schedule the other word's values shape the object. Around it the source prompt keeps layout and appearance.",
    partial(mixed, start=0.0, end=0.9), 100, kind="object", seed=3, target="source")


def edit(scenes, model, inversion):
    return output(PalimpsestPromptMixing, model=model, mix=scenes.target)


EXAMPLE = Example(
    "Prompt mixing",
    workflows=(WORKFLOW,),
    pages={"PalimpsestPromptMixing": before_and_after(WORKFLOW, "source prompt alone", edit=mixed)},
    scenes=(SceneRow("Prompt Mixing", edit, 75, samples="source", kinds=("object",)),),
    costs=(CostRow("Prompt Mixing", lambda b: b.other(PalimpsestPromptMixing, mix=b.source), 80),))
