"""Delta denoising score, shown and measured."""
from ...nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from .. import Example
from ..drawing import Workflow
from ..pictures import decoded, scene
from ..rows import NO_INVERSION, SceneRow, output


def optimised(c, p, inversion):
    return c.node("PalimpsestDeltaDenoise", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  negative=p.null["CONDITIONING"], latent=p.encoded["LATENT"])


WORKFLOW = Workflow(
    "Edit without an inversion (Delta Denoising Score)",
    "2. On SD: CFG 7.5.\n\nThe latent itself is optimised. It moves along what the target prompt predicts beyond the "
    "source prompt.",
    optimised, 270, invert=None, seed=10)


def page(c, label):
    p = scene(c, **WORKFLOW.scene)
    decoded(c, label, p, optimised(c, p, None)["LATENT"])


def edit(scenes, model, inversion):
    return output(PalimpsestDeltaDenoise, model=model, source=scenes.source, target=scenes.target,
                  negative=scenes.null, latent=scenes.latent)


EXAMPLE = Example("Delta denoising score", workflows=(WORKFLOW,), pages={"PalimpsestDeltaDenoise": page},
                  scenes=(SceneRow("Delta Denoise", edit, 160, on=NO_INVERSION),))
