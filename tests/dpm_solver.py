"""The levels of DPM-Solver++ as diffusers sets them, and LEDITS++ Invert."""
import torch
from diffusers import DPMSolverMultistepScheduler
from palimpsest.bench import twin
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert

STEPS = 10


def scheduler(steps=STEPS):
    made = DPMSolverMultistepScheduler(**twin.SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=2)
    made.set_timesteps(steps)
    return made


def invert(model, latent, source, sigmas=None, cfg=1.0, negative=None, steps=STEPS, last="auto"):
    with torch.inference_mode():
        return PalimpsestLEDITSInvert.execute(model, source, {"samples": latent}, steps, "ddim_uniform", 4, cfg,
                                              negative,
                                              sigmas, last).result[0]
