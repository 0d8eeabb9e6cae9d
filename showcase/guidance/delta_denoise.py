"""Delta denoising score, shown and measured."""
from functools import partial

from ...nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from .. import Example
from ..drawing import Workflow
from ..pictures import decoded, scene
from ..rows import NO_INVERSION, SceneRow, output

LOW = 2.0  # what becomes of the miniature's scenes at the paper's 7.5 is far from them


def optimised(c, p, inversion):
    return c.node("PalimpsestDeltaDenoise", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  negative=p.null["CONDITIONING"], latent=p.encoded["LATENT"], cfg=LOW)


WORKFLOW = Workflow(
    "Edit without an inversion (Delta Denoising Score)",
    "2. On SD: CFG 7.5.\n\nThe latent itself is optimised. It moves along what the target prompt predicts beyond the "
    "source prompt.",
    optimised, 270, invert=None, seed=10)


def page(c, label):
    p = scene(c, **WORKFLOW.scene)
    decoded(c, label, p, optimised(c, p, None)["LATENT"])


def edit(scenes, model, inversion, **settings):
    return output(PalimpsestDeltaDenoise, model=model, source=scenes.source, target=scenes.target,
                  negative=scenes.null, latent=scenes.latent, **settings)


EXAMPLE = Example("Delta denoising score", workflows=(WORKFLOW,), pages={"PalimpsestDeltaDenoise": page},
                  scenes=(SceneRow("Delta Denoise", edit, 160, on=NO_INVERSION),
                          SceneRow(f"Delta Denoise, CFG {LOW:g}", partial(edit, cfg=LOW), 161, on=NO_INVERSION)))
