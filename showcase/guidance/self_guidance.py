"""Self-guidance, shown and measured."""
from ...nodes.guidance.self_guidance import PalimpsestSelfGuidance
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, output

WORKFLOW = Workflow(
    "Move an object (Self-Guidance)",
    "2. *words* are all words of the object. Set *move_x*, *move_y* and *resize*. On SD also use a low CFG and the "
    "source prompt.\n\nGuidance makes the words attend to the object's shape, moved.",
    on_model("PalimpsestSelfGuidance", words="green, dotted, star", move_x=0.2), 230, cfg=1.5, target="source",
    exact=False)


def staying(change):
    """The words of the objects that an edit does not name, which no other phrase has."""
    words = [name.partition("#")[0] for phrase in change.same for name in phrase.names]
    others = {name.partition("#")[0] for phrase in (*change.old, *change.new) for name in phrase.names}
    return ", ".join([word for word in words if word not in others] or words)


def stays(scenes, model, inversion):
    """The objects that an edit does not name keep shape, place and appearance."""
    return output(PalimpsestSelfGuidance, model=model, inversion=inversion, words=staying(scenes.changed[0]))


EXAMPLE = Example(
    "Self-guidance",
    workflows=(WORKFLOW,),
    pages={"PalimpsestSelfGuidance": before_and_after(WORKFLOW, "source prompt alone")},
    scenes=(SceneRow("Self-Guidance (the other object stays)", stays, 134, kinds=("add", "delete", "background"),
                     singly=True),),
    costs=(CostRow("Self-Guidance", alone(PalimpsestSelfGuidance, words="star", move_x=0.2), 230, gradient=True),))
