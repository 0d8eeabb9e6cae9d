"""Prompt mixing, shown and measured."""
from ...nodes.attention.prompt_mixing import PalimpsestPromptMixing
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, output


def mixed(c, p, inversion):
    return c.node("PalimpsestPromptMixing", model=p.loader["MODEL"], mix=p.words["target"])


WORKFLOW = Workflow(
    "Vary an object's shape (Prompt Mixing)",
    "2. On SD: CFG 7.5.\n\nIn the middle of the schedule, the other word's values shape the object. Before and after, "
    "the source prompt keeps layout and appearance.",
    mixed, 100, kind="object", seed=3, target="source")


def edit(scenes, model, inversion):
    return output(PalimpsestPromptMixing, model=model, mix=scenes.target)


EXAMPLE = Example(
    "Prompt mixing",
    workflows=(WORKFLOW,),
    pages={"PalimpsestPromptMixing": before_and_after(WORKFLOW, "source prompt alone")},
    scenes=(SceneRow("Prompt Mixing", edit, 75, samples="source", kinds=("object",)),),
    costs=(CostRow("Prompt Mixing", lambda b: b.other(PalimpsestPromptMixing, mix=b.source), 80),))
