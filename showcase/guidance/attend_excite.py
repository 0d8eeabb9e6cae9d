"""Attend-and-Excite, shown and measured."""
from ...nodes.guidance.attend_excite import PalimpsestAttendExcite
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, output


def excited(c, p, inversion):
    return c.node("PalimpsestAttendExcite", model=p.loader["MODEL"], words="cross")


WORKFLOW = Workflow(
    "Leave nothing of the prompt out (Attend-and-Excite)",
    "2. *words* are what the prompt names but the picture lacks. On SD: CFG 7.5.\n\nEach step moves the latent until "
    "every word gets attention somewhere.",
    excited, 210, kind="add", seed=0)


def edit(scenes, model, inversion):
    """What an edit brings is named by its noun."""
    return output(PalimpsestAttendExcite, model=model, words=scenes.changed[0].new[0].names[-1])


EXAMPLE = Example(
    "Attend-and-Excite",
    workflows=(WORKFLOW,),
    pages={"PalimpsestAttendExcite": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Attend-and-Excite", edit, 132, kinds=("object", "add"), singly=True),),
    costs=(CostRow("Attend-and-Excite, a move a step",
                   alone(PalimpsestAttendExcite, words="star, grass", thresholds=""), 220, gradient=True),))
