"""Plug-and-Play, shown and measured."""
from ...nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion

WORKFLOW = Workflow(
    "The same layout, repainted (Plug-and-Play)",
    "2. On SD: CFG 7.5.\n\nThe source's residual features and self-attention keep the layout. The target prompt "
    "repaints it.",
    on_model("PalimpsestPlugAndPlay"), 80, kind="background", seed=0)
EXAMPLE = Example(
    "Plug-and-Play",
    workflows=(WORKFLOW,),
    pages={"PalimpsestPlugAndPlay": before_and_after(WORKFLOW, seed=3)},
    scenes=(SceneRow("Plug-and-Play", on_inversion(PalimpsestPlugAndPlay), 60),),
    costs=(CostRow("Plug-and-Play", alone(PalimpsestPlugAndPlay), 60),))
