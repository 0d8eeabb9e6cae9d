"""Blended latent diffusion, shown and measured."""
from ...nodes.blending.blended_latent import PalimpsestBlendedLatent
from .. import Example
from ..drawing import Workflow, on_injected
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, on_inversion

WORKFLOW = Workflow(
    "Add an object where you paint (Blended Latent)",
    "2. Draw your own MASK in place of the scene's. On SD: CFG 7.5, and `self_resolution` 0.5 in *Attention Inject*."
    "\n\nThe mask starts enlarged, so that a small area gives an edit room to begin.",
    on_injected("PalimpsestBlendedLatent", masked=True), 130, kind="add", seed=7, masked=True, hard=True)


def everywhere(b):
    return b.other(PalimpsestBlendedLatent, inversion=b.inversion, mask=b.whole)


EXAMPLE = Example(
    "Blended latent diffusion",
    workflows=(WORKFLOW,),
    pages={"PalimpsestBlendedLatent": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Blended Latent (true mask)", on_inversion(PalimpsestBlendedLatent, masked=True), 100),),
    costs=(CostRow("Blended Latent", everywhere, 120),))
