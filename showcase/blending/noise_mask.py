"""The mask of Watch Your Steps, shown and measured."""
from ...nodes.blending.noise_mask import PalimpsestNoiseMask
from .. import Example
from ..drawing import Workflow, on_injected
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, inject, on_inversion

WORKFLOW = Workflow(
    "Change a colour, with a mask found on the way (Noise Mask)",
    "2. On SD: CFG 7.5. Set *Attention Inject* to `self_end` 0.4 and `self_resolution` 0.5.\n\nAt every step the "
    "target's prediction is compared with the source's. Where they agree, the source stays. With *Attention Inject* "
    "this is best for colours.",
    on_injected("PalimpsestNoiseMask"), 120, seed=7, hard=True)
EXAMPLE = Example(
    "Watch Your Steps",
    workflows=(WORKFLOW,),
    pages={"PalimpsestNoiseMask": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Inject + Noise Mask", on_inversion(PalimpsestNoiseMask, inject), 30),
            SceneRow("Noise Mask", on_inversion(PalimpsestNoiseMask), 90)),
    costs=(CostRow("Noise Mask", alone(PalimpsestNoiseMask), 140),))
