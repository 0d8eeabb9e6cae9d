"""ReNoise Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...host.sampling import prediction_type
from ...inversion import renoise
from ..widgets import inversion_inputs, inversion_outputs, sigmas_input

EARLY = 1 - 250 / 999  # percent of the schedule: t < 250


class PalimpsestReNoiseInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReNoiseInvert", display_name="ReNoise Invert", category="palimpsest/inversion",
            description="Renoises each step from its own estimate and averages the last predictions (Garibi et al. "
                        "2024). Made for few-step models such as SDXL Turbo. No guidance (CFG 1).",
            inputs=[
                *inversion_inputs(4, scheduler="simple", which="Paper, on SDXL Turbo: simple (timesteps 999, "
                                                               "749, 499 and 249)."),
                io.Int.Input("iterations", default=9, min=0, max=100,
                             tooltip="Renoisings per step, one evaluation each. 0 is DDIM inversion. Paper: 9 on "
                                     "SDXL Turbo."),
                io.Int.Input("average", default=2, min=1, max=100,
                             tooltip="How many of the last predictions are averaged. 1: only the last. Paper: 2 on "
                                     "SDXL Turbo."),
                io.Int.Input("early_iterations", default=5, min=0, max=100,
                             tooltip="Predictions at the cleanest levels (timesteps below 250). All are averaged. 0 "
                                     "and 1 are DDIM inversion there. Paper: 5 on SDXL Turbo."),
                io.Float.Input("eta", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="0 inverts the deterministic sampler. Any ODE sampler replays it. Above 0 "
                                       "inverts euler ancestral at this eta. Noise correction fits the seed's noise "
                                       "to each step, and Replay's own SAMPLER adds it again. Paper: 0 on SDXL, 1 "
                                       "on SDXL Turbo. Not for flow models."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Noise seed for eta above 0."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, iterations, average, early_iterations, eta, seed,
                sigmas=None) -> io.NodeOutput:
        if average > iterations + 1:
            raise ValueError(f"ReNoise averages the last {average} predictions, {iterations} iterations make "
                             f"{iterations + 1}: lower average, or raise iterations.")
        if eta > 0 and prediction_type(model) == "flow":
            raise ValueError(f"ReNoise's noise correction at eta {eta:g} is known for eps and v models, this MODEL is "
                             "a flow model: set eta to 0.")
        early = float(model.get_model_object("model_sampling").percent_to_sigma(EARLY))

        def solve(*args, **kwargs):
            return renoise.invert(*args, iterations=iterations, average=average, early_iterations=early_iterations,
                                  early=early, eta=eta, seed=seed, **kwargs)
        name, trajectory, noted = (("ReNoise Ancestral", "independent", {"eta": eta, "seed": seed}) if eta > 0
                                   else ("ReNoise", "deterministic", {}))
        return invert("ReNoise Invert", name, model, source, latent, steps, scheduler, sigmas, solve,
                      trajectory=trajectory, **noted)
