"""Self-guidance, shown and measured."""
from ...nodes.guidance.self_guidance import PalimpsestSelfGuidance
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, alone

WORKFLOW = Workflow(
    "Move an object (Self-Guidance)",
    "2. *words* are all words of the object. Set *move_x*, *move_y* and *resize*. On SD also use a low CFG and the "
    "source prompt.\n\nGuidance makes the words attend to the object's shape, moved.",
    on_model("PalimpsestSelfGuidance", words="green, dotted, star", move_x=0.2), 230, cfg=1.5, target="source")
EXAMPLE = Example(
    "Self-guidance",
    workflows=(WORKFLOW,),
    pages={"PalimpsestSelfGuidance": before_and_after(WORKFLOW, "source prompt alone")},
    costs=(CostRow("Self-Guidance", alone(PalimpsestSelfGuidance, words="star", move_x=0.2), 230, gradient=True),))
