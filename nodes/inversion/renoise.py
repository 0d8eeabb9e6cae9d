"""ReNoise Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.renoise import ANCESTRAL, DETERMINISTIC
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestReNoiseInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReNoiseInvert", display_name="ReNoise Invert", category="palimpsest/inversion",
            description="Renoises each step from its own estimate and averages the last predictions (Garibi et al. "
                        "2024). Made for few-step models such as SDXL Turbo. No guidance (CFG 1).",
            **aliases("SDXL turbo inversion", "turbo inversion", "few step inversion", "LCM inversion",
                      "lightning inversion"),
            inputs=[
                *inversion_inputs(DETERMINISTIC, which=(
                    "Paper, on SDXL Turbo: simple (timesteps 999, 749, 499 and 249).")),
                setting_input(DETERMINISTIC, "iterations", tooltip=(
                    "Renoisings per step, one evaluation each. 0 is DDIM inversion. Paper: 9 on SDXL Turbo.")),
                setting_input(DETERMINISTIC, "average", tooltip=(
                    "How many of the last predictions are averaged. 1: only the last. Paper: 2 on SDXL Turbo.")),
                setting_input(DETERMINISTIC, "early_iterations", tooltip=(
                    "Predictions at the cleanest levels (timesteps below 250). All are averaged. 0 and 1 are DDIM "
                    "inversion there. Paper: 5 on SDXL Turbo.")),
                io.Float.Input("eta", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="0 inverts the deterministic sampler. Any ODE sampler replays it. Above 0 "
                                       "inverts euler ancestral at this eta. Noise correction fits the seed's noise "
                                       "to each step, and Replay's own SAMPLER adds it again. Paper: 0 on SDXL, 1 "
                                       "on SDXL Turbo. Not for flow models."),
                setting_input(ANCESTRAL, "seed", control_after_generate=True, tooltip="Noise seed for eta above 0."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, iterations, average, early_iterations, eta, seed,
                sigmas=None) -> io.NodeOutput:
        method, noise = (ANCESTRAL, {"eta": eta, "seed": seed}) if eta > 0 else (DETERMINISTIC, {})
        return io.NodeOutput(*invert(method, model, source, latent, steps, scheduler, sigmas,
                                     iterations=iterations, average=average, early_iterations=early_iterations,
                                     **noise))
