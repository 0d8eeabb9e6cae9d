"""MagicRemover, shown and measured."""
from ...miniature.scenes import held_out_edit
from ...nodes.guidance.magic_remover import PalimpsestMagicRemover
from .. import Example, folds
from ..drawing import BROWN, CFG, GREEN, Workflow
from ..folds import Blueprint, Start
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, on_inversion

BEHIND, REMOVED = "what lies behind it", "words to remove"


def removed(c, p, inversion):
    return c.node("PalimpsestMagicRemover", model=p.loader["MODEL"], inversion=inversion["inversion"], mask=p.mask)


WORKFLOW = Workflow(
    "Remove an object (MagicRemover)",
    "2. Draw a MASK of the object, or name it in *words* with Attention Store. *What lies there* is a prompt of what "
    "should be seen there and nothing else. On SD: CFG 7.5.\n\nThe object's area is filled from its surroundings.",
    removed, 240, kind="delete", seed=1, prompt="a photo of a sky background", masked=True)

def remove(c):
    """The words are found, and their area is filled from around it."""
    p, words = folds.picture_and_words(c, wanted=BEHIND), c.asks(REMOVED, "")
    with c.group("2  Invert, and find the object", GREEN):
        folds.inverted(c, p, p.source["source"])
        folds.found(c, p, words)
    c.row()
    with c.group("3  Edit", BROWN):
        c.column(320)
        remover = c.node("PalimpsestMagicRemover", model=p.model, inversion=p.inversion, mask=p.mask)
        folds.sampled(c, p, remover["MODEL"], p.words["target"])
    folds.given_back(c, p, p.mask)


BLUEPRINT = Blueprint(
    "Image Edit (Remove an Object)",
    "Erase the thing that you name, and fill its place from its surroundings. For any SD1.x, SD2.x or SDXL checkpoint.",
    remove, order=20)
SCENE = {"seed": 11, "kind": "delete"}
START = Start(
    "Start here - Remove an object", BLUEPRINT,
    "In the first box say what it shows, in the second what lies behind the thing. **Name the thing** to remove in "
    "words of the first.",
    SCENE, {folds.SHOWS: held_out_edit(**SCENE).source_text, BEHIND: WORKFLOW.prompt, REMOVED: "blue, square",
            folds.GUIDANCE: CFG},
    {folds.SHOWS: "a photo of a red apple and a white cup on a wooden table", BEHIND: "a photo of a wooden table",
     REMOVED: "white, cup"}, 2)

def ground(scenes):
    """What lies behind an object: the target's prompt without what stays."""
    return scenes.encoded([" of ".join(phrase.text for phrase in change.ends) for change in scenes.changed])


EXAMPLE = Example(
    "MagicRemover",
    workflows=(WORKFLOW, START),
    blueprints=(BLUEPRINT,),
    pages={"PalimpsestMagicRemover": before_and_after(WORKFLOW, "the prompt alone")},
    scenes=(SceneRow("MagicRemover (true mask)", on_inversion(PalimpsestMagicRemover, masked=True), 117,
                     samples=ground, kinds=("delete",)),),
    costs=(CostRow("MagicRemover", lambda b: b.other(PalimpsestMagicRemover, words="star", attention=b.maps), 240,
                   gradient=True),))
