"""ReFlex, shown and measured."""
from ...nodes.attention.reflex import PalimpsestMidStepFeatures
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..drawing import Workflow, inverted
from ..pictures import before_and_after
from ..rows import SceneRow, on_inversion, output


def by_steps(c, p):
    return inverted(c, p, steps=20, scheduler="simple")


def held(c, p, inversion):
    return c.node("PalimpsestMidStepFeatures", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  prompt_edit=p.words["prompt edit"])


WORKFLOW = Workflow(
    "Change a word on Flux (ReFlex)",
    "2. On Flux: 28 steps, *simple*, CFG 1, a FluxGuidance of 3.5 behind source and target.\n\nThe first steps take "
    "features and attention from the middle of the source's inversion. Higher *top_k* and lower *self_end* let shapes "
    "change more. For one place put *Latent Blend* behind it.",
    held, 69, kind="object", seed=0, invert=by_steps, model="Flux")


def mid_step(scenes, model, inversion):
    return output(PalimpsestMidStepFeatures, model=model, inversion=inversion, prompt_edit=scenes.edit)


EXAMPLE = Example(
    "ReFlex",
    workflows=(WORKFLOW,),
    pages={"PalimpsestMidStepFeatures": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Mid-Step Features", mid_step, 89, only="flow"),
            SceneRow("Mid-Step Features + Latent Blend (true mask)",
                     on_inversion(PalimpsestLatentBlend, mid_step, True), 90, only="flow")))
