"""Attend-and-Excite, shown and measured."""
from ...nodes.guidance.attend_excite import PalimpsestAttendExcite
from .. import Example
from ..drawing import Workflow
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, output


def excited(c, p, inversion):
    return c.node("PalimpsestAttendExcite", model=p.loader["MODEL"], words="cross")


def edit(scenes, model, inversion):
    """What an edit brings is named by its noun."""
    return output(PalimpsestAttendExcite, model=model, words=scenes.changed[0].new[0].names[-1])


EXAMPLE = Example(
    "Attend-and-Excite",
    pages={"PalimpsestAttendExcite": before_and_after(Workflow("", "", excited, kind="add", seed=0))},
    scenes=(SceneRow("Attend-and-Excite", edit, 132, kinds=("object", "add"), singly=True),),
    costs=(CostRow("Attend-and-Excite, a move a step",
                   alone(PalimpsestAttendExcite, words="star, grass", thresholds=""), 220, gradient=True),),
    elsewhere="The miniature leaves nothing of a prompt out, so no picture of it shows what this adds. It stands "
              "between the MODEL and any sampler.")
