"""Uni-Edit Guidance, shown and measured."""
from functools import partial

from ...nodes.guidance.uni_edit import PalimpsestUniEditGuidance
from .. import Example
from ..drawing import Workflow, inverted
from ..pictures import before_and_after
from ..rows import SceneRow, output

OMEGA, START = 1.0, 0.4  # of the miniature


def apart(c, p, inversion):
    return c.node("PalimpsestUniEditGuidance", model=p.loader["MODEL"], source=p.words["source"], omega=OMEGA)


def edit(scenes, model, inversion):
    return output(PalimpsestUniEditGuidance, model=model, source=scenes.source, omega=OMEGA)


WORKFLOW = Workflow(
    "Change a word, with no mask (Uni-Edit)",
    "2. On Flux and SD3: scheduler simple, and on Flux a FluxGuidance of 1 behind both prompts. There and on SDXL: 15 "
    "steps, omega 5.\n\nEach step goes along what the target says otherwise than the source, most where they differ "
    "most. Needs no mask and no negative prompt: sample at CFG 1.",
    apart, 66, seed=9, invert=partial(inverted, kind="PalimpsestUniInvert", steps=20, scheduler="ddim_uniform"),
    cfg=1.0, start=START)
EXAMPLE = Example(
    "Uni-Edit",
    workflows=(WORKFLOW,),
    pages={"PalimpsestUniEditGuidance": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Uni-Edit (omega 1, start 0.4)", edit, 146, on="Uni-Inv", cfg=1.0, start=START),))
