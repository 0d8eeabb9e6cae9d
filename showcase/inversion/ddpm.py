"""Edit-friendly DDPM inversion, shown and measured."""
from functools import partial

from ...inversion.ddpm import METHOD
from .. import Example
from ..drawing import Workflow, inverted, on_injected
from ..pictures import HIGH, both
from ..rows import InversionRow

WORKFLOW = Workflow(
    "Change an object (Edit-Friendly DDPM)",
    "2. Draw your own MASK in place of the scene's. On SD: 100 steps, `cfg` 3.5 in the inversion with an empty "
    "negative prompt, 15 in the sampler, `self_resolution` 0.5 in *Attention Inject*.\n\nEvery level gets its own "
    "noise and keeps its noise map. *Replay Inversion* starts at 0.36. A later start keeps more of the picture. With "
    "Inject and a blend, this comes nearest when one object becomes another.",
    on_injected("PalimpsestLatentBlend", masked=True), 60,
    invert=partial(inverted, kind="PalimpsestDDPMInvert", steps=50), start=0.36, kind="object", seed=3,
    masked=True, hard=True)
EXAMPLE = Example(
    "Edit-friendly DDPM inversion",
    workflows=(WORKFLOW,),
    pages={"PalimpsestDDPMInvert": both("PalimpsestDDPMInvert", 50, HIGH, 0.36)},
    inversions=(InversionRow("Edit-friendly DDPM", METHOD, 150, guided=True),))
