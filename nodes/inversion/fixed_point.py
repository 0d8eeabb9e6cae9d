"""Fixed-Point Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.fixed_point import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestFixedPointInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFixedPointInvert", display_name="Fixed-Point Invert", category="palimpsest/inversion",
            description="DDIM inversion that iterates each step until the sampler reverses it (AIDI, Pan et al. "
                        "2023). One model evaluation per iteration. No guidance (CFG 1).",
            **aliases("AIDI", "accurate inversion", "better inversion", "iterative inversion"),
            inputs=[
                *inversion_inputs(METHOD, (
                    "Number of steps. Few are enough, because each is iterated. Not the paper's value.")),
                setting_input(METHOD, "iterations", tooltip=(
                    "Maximum model evaluations per step. 1 is DDIM inversion. More return the picture more exactly "
                    "if the steps are small enough to converge. Not the paper's value: the paper iterates until "
                    "little changes.")),
                setting_input(METHOD, "tolerance", step=1e-6, round=1e-7, tooltip=(
                    "A step ends early if an iteration changes the latent by at most this share of its norm. 0: all "
                    "iterations. fp16 weights stop improving near 1e-3. Not the paper's value.")),
                setting_input(METHOD, "acceleration", tooltip=(
                    "anderson mixes the last three iterations to minimise the residual. It needs fewer iterations "
                    "for the same error. none is plain iteration. Paper: anderson (AIDI_A).")),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, iterations, tolerance, acceleration,
                sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas,
                                     iterations=iterations, tolerance=tolerance, acceleration=acceleration))
