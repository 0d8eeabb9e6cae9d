"""pix2pix-zero, shown and measured."""
from ...nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance
from .. import Example
from ..drawing import CFG, Workflow, inverted, on_model
from ..pictures import before_and_after, sample, scene
from ..rows import CostRow, SceneRow, alone, on_inversion

WORKFLOW = Workflow(
    "Held by its attention maps (pix2pix-zero)",
    "2. On SD: CFG 5, and *Edit Direction* with lists of sentences instead of one target.\n\nAt every step a gradient "
    "pulls the target's attention maps to the source's.",
    on_model("PalimpsestCrossAttentionGuidance"), 220, seed=8)


def direction(c, label):
    p = scene(c, 12)
    inversion = inverted(c, p)
    sentences = ["\n".join(f"a photo of a {colour} dotted {shape} on a {ground} background"
                           for shape in ("star", "circle", "heart") for ground in ("sky", "sand"))
                 for colour in ("green", "blue")]
    moved = c.node("PalimpsestEditDirection", clip=p.loader["CLIP"], source_sentences=sentences[0],
                   target_sentences=sentences[1], conditioning=p.words["source"])
    sample(c, "source prompt", p, inversion, "source", CFG)
    sample(c, "with the direction", p, inversion, moved["CONDITIONING"], CFG)


EXAMPLE = Example(
    "pix2pix-zero",
    workflows=(WORKFLOW,),
    pages={"PalimpsestCrossAttentionGuidance": before_and_after(WORKFLOW), "PalimpsestEditDirection": direction},
    scenes=(SceneRow("Cross-Attention Guidance", on_inversion(PalimpsestCrossAttentionGuidance), 120),),
    costs=(CostRow("Cross-Attention Guidance", alone(PalimpsestCrossAttentionGuidance), 210, gradient=True),))
