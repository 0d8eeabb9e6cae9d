"""Regularized Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...host.sampling import prediction_type
from ...inversion import regularized
from ..widgets import inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestRegularizedInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRegularizedInvert", display_name="Regularized Invert (pix2pix-zero)",
            category="palimpsest/inversion",
            description="DDIM inversion that pushes the predicted noise towards white noise (Parmar et al. 2023). "
                        "For edits that plain inversion holds back. No guidance (CFG 1), one evaluation per step. "
                        "Eps and v models.",
            inputs=[
                *inversion_inputs(),
                io.Float.Input("lambda_ac", default=20.0, min=0.0, max=1000.0, step=1.0,
                               tooltip="Weight against correlation between cells of the noise. It acts less on "
                                       "larger latents. 0 turns it off. Paper: 20 at 64 × 64."),
                io.Float.Input("lambda_kl", default=20.0, min=0.0, max=1000.0, step=1.0,
                               tooltip="Weight that keeps the noise's mean at 0 and its variance at 1. It acts less "
                                       "on larger latents. 0 turns it off. Paper: 20 at 64 × 64."),
                io.Int.Input("reg_steps", default=5, min=0, max=100,
                             tooltip="How often both weights act on each prediction. 0 is DDIM inversion. Paper: 5."),
                io.Int.Input("ac_rolls", default=5, min=1, max=100,
                             tooltip="Random shifts at which each pass measures correlation. They share the weight. "
                                     "Paper: 5."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Seed of the shifts."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, lambda_ac, lambda_kl, reg_steps, ac_rolls, seed,
                sigmas=None) -> io.NodeOutput:
        if prediction_type(model) == "flow":
            raise ValueError(f"Regularized Invert makes predicted noise white, this {type(model.model).__name__} MODEL "
                             "predicts a flow, for which the paper has no such term: use DDIM Invert, or an eps or v "
                             "model (SD1.x, SD2.x, SDXL).")
        weights = {"lambda_ac": lambda_ac, "lambda_kl": lambda_kl, "reg_steps": reg_steps, "ac_rolls": ac_rolls,
                   "seed": seed}

        def solve(*args, flow, **kwargs):
            return regularized.invert(*args, **weights, **kwargs), {}
        return invert("Regularized Invert", "Regularized", model, source, latent, steps, scheduler, sigmas, solve,
                      **weights)
