"""Fixed-Point Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion import fixed_point
from ..widgets import inversion_inputs, inversion_outputs, sigmas_input

ACCELERATIONS = {"none": 0, "anderson": fixed_point.MEMORY}


class PalimpsestFixedPointInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFixedPointInvert", display_name="Fixed-Point Invert", category="palimpsest/inversion",
            description="DDIM inversion whose every step is iterated until the sampler takes it back (AIDI, Pan et al. "
                        "2023). A model evaluation an iteration, no guidance (CFG 1).",
            inputs=[
                *inversion_inputs(20, "Levels of the trajectory. Few are enough where every step is iterated; not the "
                                      "paper's number."),
                io.Int.Input("iterations", default=5, min=1, max=100,
                             tooltip="The most model evaluations a step. 1: DDIM inversion. More bring the picture "
                                     "back more exactly where the steps are small enough for the iteration to "
                                     "converge. Not the paper's: it iterates until little changes."),
                io.Float.Input("tolerance", default=1e-5, min=0.0, max=1.0, step=1e-6, round=1e-7,
                               tooltip="A step ends early once an iteration changes its latent by no more than this "
                                       "share of its norm. 0: all iterations. Not the paper's; fp16 weights stop "
                                       "improving near 1e-3."),
                io.Combo.Input("acceleration", options=list(ACCELERATIONS), default="anderson",
                               tooltip="anderson mixes the last three iterations so that the residual is least: fewer "
                                       "iterations for the same error. none is the plain iteration. The paper's own is "
                                       "anderson (AIDI_A)."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, iterations, tolerance, acceleration,
                sigmas=None) -> io.NodeOutput:
        used = []

        def solve(*args, **kwargs):
            latents, used[:] = fixed_point.invert(*args, iterations=iterations, tolerance=tolerance,
                                                  memory=ACCELERATIONS[acceleration], **kwargs)
            return latents, {}
        return invert("Fixed-Point Invert", "Fixed Point", model, source, latent, steps, scheduler, sigmas, solve,
                      iterations=used)
