"""EDICT, shown and measured."""
from ...inversion.edict import METHOD
from .. import Example
from ..drawing import CFG, Workflow, injected, inverted
from ..pictures import returns
from ..rows import InversionRow


def coupled(c, p):
    return inverted(c, p, "PalimpsestEDICTInvert", steps=20, cfg=CFG, negative=p.null["CONDITIONING"])


WORKFLOW = Workflow(
    "Change a word from an exact inversion (EDICT)",
    "2. On SD use 50 steps. Set *Attention Inject* to `self_end` 0.4 and `self_resolution` 0.5. Use the CFG of the "
    "sampler in the inversion too (paper: 3).\n\nTwo coupled latents return the picture exactly. *Replay Inversion* "
    "brings the method's own SAMPLER, so leave its sampler input open. BDIA Invert and Direct Invert are drawn the "
    "same way.",
    injected, 50, invert=coupled)
EXAMPLE = Example(
    "EDICT",
    workflows=(WORKFLOW,),
    pages={"PalimpsestEDICTInvert": returns("PalimpsestEDICTInvert", 20, CFG, cfg=CFG)},
    inversions=(InversionRow("EDICT", METHOD, 120, guided=True),))
