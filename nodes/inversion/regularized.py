"""Regularized Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.regularized import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestRegularizedInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestRegularizedInvert", display_name="Regularized Invert (pix2pix-zero)",
            category="palimpsest/inversion",
            description="DDIM inversion that pushes the predicted noise towards white noise (Parmar et al. 2023). "
                        "For edits that plain inversion holds back. No guidance (CFG 1), one evaluation per step. "
                        "Eps and v models.",
            **aliases("pix2pix zero inversion", "gaussian noise inversion", "whiten noise", "noise regularization"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "lambda_ac", step=1.0, tooltip=(
                    "Weight against correlation between cells of the noise. It acts less on larger latents. 0 turns "
                    "it off. Paper: 20 at 64 × 64.")),
                setting_input(METHOD, "lambda_kl", step=1.0, tooltip=(
                    "Weight that keeps the noise's mean at 0 and its variance at 1. It acts less on larger latents. "
                    "0 turns it off. Paper: 20 at 64 × 64.")),
                setting_input(METHOD, "reg_steps", tooltip=(
                    "How often both weights act on each prediction. 0 is DDIM inversion. Paper: 5.")),
                setting_input(METHOD, "ac_rolls", tooltip=(
                    "Random shifts at which each pass measures correlation. They share the weight. Paper: 5.")),
                setting_input(METHOD, "seed", control_after_generate=True, tooltip="Seed of the shifts."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, lambda_ac, lambda_kl, reg_steps, ac_rolls, seed,
                sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas,
                                     lambda_ac=lambda_ac, lambda_kl=lambda_kl, reg_steps=reg_steps, ac_rolls=ac_rolls,
                                     seed=seed))
