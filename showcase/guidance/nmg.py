"""Noise map guidance, shown and measured."""
from ...nodes.guidance.nmg import PalimpsestNoiseMapGuidance
from .. import Example
from ..drawing import Workflow, on_model
from ..pictures import before_and_after
from ..rows import CostRow, SceneRow, alone, on_inversion

WORKFLOW = Workflow(
    "Change a colour, kept by the noise map (Noise Map Guidance)",
    "2. On SD: CFG 7.5, scale 3.05.\n\nEach step is pulled to the inversion's next latent before the prompt acts.",
    on_model("PalimpsestNoiseMapGuidance", scale=0.19), 260, seed=1, hard=True)
EXAMPLE = Example(
    "Noise map guidance",
    workflows=(WORKFLOW,),
    pages={"PalimpsestNoiseMapGuidance": before_and_after(WORKFLOW)},
    scenes=(SceneRow("Noise Map Guidance", on_inversion(PalimpsestNoiseMapGuidance, scale=0.05),
                     130),),  # its default, for the miniature's latents
    costs=(CostRow("Noise Map Guidance", alone(PalimpsestNoiseMapGuidance), 200, gradient=True),))
