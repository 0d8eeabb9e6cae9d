"""MasaCtrl, shown and measured."""
from ...nodes.attention.masactrl import PalimpsestMutualSelfAttention
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion

WORKFLOW = Workflow(
    "Change a pose, keep the looks (MasaCtrl)",
    "2. On SD: CFG 7.5, `layers` empty.\n\nThe new prompt says the pose and nothing of the looks. The target attends "
    "to the source's keys and values, which fill it.",
    on_model("PalimpsestMutualSelfAttention", layers="u0-3", null_too=False), 70, kind="pose", seed=1,
    prompt="a photo of a tilted moon on a sand background", asked="The pose")
EXAMPLE = Example(
    "MasaCtrl, TIC",
    workflows=(WORKFLOW,),
    pages={"PalimpsestMutualSelfAttention": before_and_after(
        WORKFLOW, edit=on_model("PalimpsestMutualSelfAttention"), prompt="", seed=0)},
    scenes=(SceneRow("MasaCtrl", on_inversion(PalimpsestMutualSelfAttention), 50, crossed=True),),
    costs=(CostRow("MasaCtrl", alone(PalimpsestMutualSelfAttention), 50, large=True, joint=True),))
