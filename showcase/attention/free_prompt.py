"""Free-prompt editing, shown and measured."""
from ...nodes.attention.free_prompt import PalimpsestFreePromptEdit
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion

WORKFLOW = Workflow(
    "Change colours without a source prompt (Free-Prompt Edit)",
    "2. On SD: CFG 7.5. The source prompt may be empty.\n\nOnly the source's self-attention maps are kept.",
    on_model("PalimpsestFreePromptEdit"), 90, seed=2)
EXAMPLE = Example(
    "Free-prompt editing",
    workflows=(WORKFLOW,),
    pages={"PalimpsestFreePromptEdit": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Free-Prompt Edit", on_inversion(PalimpsestFreePromptEdit), 70),),
    costs=(CostRow("Free-Prompt Edit", alone(PalimpsestFreePromptEdit), 70, joint=True),))
