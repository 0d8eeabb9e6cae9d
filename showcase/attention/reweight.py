"""Attention re-weighting, shown and measured."""
from ...nodes.attention.reweight import PalimpsestAttentionReweight
from .. import Example
from ..drawing import CFG, Workflow, inverted
from ..pictures import sample, scene
from ..rows import CostRow, SceneRow, alone, fresh, inject, output


def weighed(c, p, inversion, weights="dotted: 4"):
    return c.node("PalimpsestAttentionReweight", model=p.loader["MODEL"], word_weights=weights)


WORKFLOW = Workflow(
    "Strengthen a word (Attention Re-weight)",
    "2. *word_weights* are words of the prompt and their factors. On SD: 2 to 10, CFG 7.5.\n\nThe word's attention is "
    "multiplied. A negative factor reverses it.",
    weighed, 250, target="source", exact=False)


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p)
    sample(c, "source prompt", p, inversion, cfg=CFG)
    for weights in ("dotted: 4", "dotted: -1"):
        sample(c, weights, p, inversion, cfg=CFG, model=weighed(c, p, inversion, weights)["MODEL"])


def emphasised(scenes, model, inversion):
    return output(PalimpsestAttentionReweight, model=inject(scenes, model, inversion),
                  word_weights=", ".join(f"{name}: 3" for name in fresh(scenes, "new")))


EXAMPLE = Example(
    "Attention re-weighting",
    workflows=(WORKFLOW,),
    pages={"PalimpsestAttentionReweight": page},
    scenes=(SceneRow("Inject + Re-weight (new words 3)", emphasised, 45, singly=True,
                     kinds=("object", "add", "colour", "material", "background", "style")),),
    costs=(CostRow("Attention Re-weight", alone(PalimpsestAttentionReweight, word_weights="star: 3"), 40),))
