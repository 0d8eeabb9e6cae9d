"""pix2pix-zero, shown and measured."""
from ...miniature.scenes import GROUNDS
from ...nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance, PalimpsestEditDirection
from .. import Example
from ..drawing import CFG, Workflow, inverted, on_model
from ..pictures import before_and_after, sample, scene
from ..rows import CostRow, SceneRow, alone, on_inversion, output

WORKFLOW = Workflow(
    "Change a word, held by attention maps (pix2pix-zero)",
    "2. On SD: CFG 5, `amount` 0.1, and *Edit Direction* with lists of sentences instead of one target.\n\nAt every "
    "step a gradient pulls the target's attention maps to the source's.",
    on_model("PalimpsestCrossAttentionGuidance", amount=1.0), 220, seed=8)


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


def moved(scenes):
    """The source prompt and the direction from the old phrase to the new one."""
    change = scenes.changed[0]
    lists = ["\n".join(f"a photo of {phrase.text} on a {ground} background" for ground in GROUNDS)
             for phrase in (change.old[0], change.new[0])]
    return output(PalimpsestEditDirection, clip=scenes.parts[1], source_sentences=lists[0], target_sentences=lists[1],
                  conditioning=scenes.source)


EXAMPLE = Example(
    "pix2pix-zero",
    workflows=(WORKFLOW,),
    pages={"PalimpsestCrossAttentionGuidance": before_and_after(
        WORKFLOW, edit=on_model("PalimpsestCrossAttentionGuidance")), "PalimpsestEditDirection": direction},
    scenes=(SceneRow("Cross-Attention Guidance", on_inversion(PalimpsestCrossAttentionGuidance), 120),
            SceneRow("Cross-Attention Guidance (edit direction)", on_inversion(PalimpsestCrossAttentionGuidance), 121,
                     samples=moved, kinds=("object", "colour", "material", "pose"), singly=True)),
    costs=(CostRow("Cross-Attention Guidance", alone(PalimpsestCrossAttentionGuidance), 210, gradient=True),))
