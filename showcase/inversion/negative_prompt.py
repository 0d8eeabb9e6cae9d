"""Negative-prompt inversion, shown and measured."""
from functools import partial

from ...inversion.negative_prompt import METHOD
from .. import Example
from ..drawing import Workflow, inverted, on_injected
from ..pictures import HIGH, returns
from ..rows import InversionRow

WORKFLOW = Workflow(
    "Change a word at high guidance, nothing learned (Negative Prompt)",
    "2. On SD set *Attention Inject* to `self_end` 0.4 and `self_resolution` 0.5.\n\nThe source prompt is the negative "
    "prompt. Guidance cancels where the target says the same. *Proximal Guidance* keeps the rest only where it clearly "
    "differs.",
    on_injected("PalimpsestProximalGuidance"), 40, invert=partial(inverted, kind="PalimpsestNegativePromptInvert"),
    cfg=HIGH, seed=0, hard=True)
EXAMPLE = Example(
    "Negative-prompt inversion",
    workflows=(WORKFLOW,),
    pages={"PalimpsestNegativePromptInvert": returns("PalimpsestNegativePromptInvert", 20, HIGH)},
    inversions=(InversionRow("Negative-prompt", METHOD, 70, over="DDIM"),))
