"""Delta denoising score, shown."""
from .. import Example
from ..drawing import Workflow
from ..pictures import decoded, scene


def optimised(c, p, inversion):
    return c.node("PalimpsestDeltaDenoise", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  negative=p.null["CONDITIONING"], latent=p.encoded["LATENT"])


WORKFLOW = Workflow(
    "No inversion at all (Delta Denoising Score)",
    "2. On SD: CFG 7.5.\n\nThe latent itself is optimised. It moves along what the target prompt predicts beyond the "
    "source prompt.",
    optimised, 270, invert=None, seed=10)


def page(c, label):
    p = scene(c, WORKFLOW.seed, WORKFLOW.kind)
    decoded(c, label, p, optimised(c, p, None)["LATENT"])


EXAMPLE = Example("Delta denoising score", workflows=(WORKFLOW,), pages={"PalimpsestDeltaDenoise": page})
