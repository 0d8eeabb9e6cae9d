"""Plug-and-Play, shown and measured."""
from ...miniature.hard import an_edit
from ...nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from .. import Example, folds
from ..drawing import BROWN, CFG, GREEN, Workflow, on_model
from ..folds import Blueprint, Start
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion

SCENE = {"seed": 55, "kind": "colour", "hard": True}  # its arms are in no caption
LAYOUT, OUTLINES = "keep the layout", "keep outlines"

WORKFLOW = Workflow(
    "Repaint in the same layout (Plug-and-Play)",
    "2. On SD: CFG 7.5.\n\nThe source's residual features and self-attention keep the layout. The target prompt "
    "repaints it.",
    on_model("PalimpsestPlugAndPlay"), 80, kind="background", seed=3)


def repaint(c):
    """The picture's features keep its layout, the prompt repaints it all."""
    p = folds.picture_and_words(c, shows=None)
    with c.group("2  Invert", GREEN):
        folds.inverted(c, p, p.null)
    c.row()
    with c.group("3  Edit", BROWN):
        c.column(320)
        held = c.node("PalimpsestPlugAndPlay", model=p.model, inversion=p.inversion,
                      feature_end=c.asks(LAYOUT), attention_end=c.asks(OUTLINES))
        folds.sampled(c, p, held["MODEL"], p.target)
    folds.given_back(c, p)


BLUEPRINT = Blueprint(
    "Image Edit (Keep the Layout, Repaint)",
    "Restyle a picture: another style or material for all of it, every thing in its place. For any SD1.x, SD2.x or "
    "SDXL checkpoint.", repaint, order=30)
START = Start(
    "Start here - Restyle", BLUEPRINT, "Say **how it should look**.", SCENE,
    {folds.WANTED: an_edit(**SCENE).source_text.replace("photo", "sketch"), folds.GUIDANCE: CFG, folds.STEPS: 20,
     LAYOUT: 1.0, OUTLINES: 1.0},
    {folds.WANTED: "a watercolour painting of an apple and a cup on a table"}, 4)
EXAMPLE = Example(
    "Plug-and-Play",
    workflows=(WORKFLOW, START),
    blueprints=(BLUEPRINT,),
    pages={"PalimpsestPlugAndPlay": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Plug-and-Play", on_inversion(PalimpsestPlugAndPlay), 60, crossed=True),
            SceneRow("Plug-and-Play, attention alone", on_inversion(PalimpsestPlugAndPlay, feature_end=0.0), 61,
                     only="flow")),
    costs=(CostRow("Plug-and-Play", alone(PalimpsestPlugAndPlay), 60),
           CostRow("Plug-and-Play, attention alone", alone(PalimpsestPlugAndPlay, feature_end=0.0), 62, joint=True)))
