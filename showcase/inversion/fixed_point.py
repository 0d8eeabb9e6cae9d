"""Fixed-point inversion, shown and measured."""
from ...inversion.fixed_point import METHOD
from .. import Example
from ..drawing import Workflow, injected, inverted
from ..pictures import returns
from ..rows import InversionRow


def reported(c, p):
    """An inversion with its report and its file."""
    inversion = inverted(c, p, "PalimpsestFixedPointInvert")
    c.node("PalimpsestSaveInversion", None, 160, inversion=inversion["inversion"])
    c.column(620)
    c.node("PalimpsestInversionReport", None, 300, model=p.loader["MODEL"], inversion=inversion["inversion"],
           vae=p.loader["VAE"], image=p.picture)
    return inversion


WORKFLOW = Workflow(
    "Measure and save an inversion (Fixed-Point)",
    "2. On SD: 50 steps, CFG 7.5. Set *Attention Inject* to `self_end` 0.4 and `self_resolution` 0.5.\n\n"
    "*Fixed-Point Invert* returns the picture more exactly than DDIM. *Inversion Report* shows what comes back. "
    "*Save Inversion* keeps it for *Load Inversion* later.",
    injected, 170, invert=reported, seed=7)
EXAMPLE = Example(
    "Fixed-point inversion (AIDI)",
    workflows=(WORKFLOW,),
    pages={"PalimpsestFixedPointInvert": returns("PalimpsestFixedPointInvert", 10)},
    inversions=(InversionRow("Fixed point (AIDI)", METHOD, 40),))
