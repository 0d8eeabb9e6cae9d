"""Inversions that refine DDIM's: fixed point, ReNoise, and negative-prompt inversion."""
from comfy_api.latest import io

from ..host.sampling import prediction_type
from ..inversion import ddim, fixed_point, negative_prompt, renoise
from .runner import inputs, invert, outputs, own_sigmas

ACCELERATIONS = {"none": 0, "anderson": fixed_point.MEMORY}
EARLY = 1 - 250 / 999  # percent of the schedule: t < 250


class PalimpsestFixedPointInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFixedPointInvert", display_name="Fixed-Point Invert", category="palimpsest/inversion",
            description="DDIM inversion whose every step is iterated until the sampler takes it back (AIDI, Pan et al. "
                        "2023). A model evaluation an iteration, no guidance (CFG 1).",
            inputs=[
                *inputs(20, "Levels of the trajectory. Few are enough where every step is iterated; not the paper's number."),
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
                own_sigmas(),
            ],
            outputs=outputs())

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


class PalimpsestReNoiseInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReNoiseInvert", display_name="ReNoise Invert", category="palimpsest/inversion",
            description="Noises again from each estimate of a step and averages the last predictions (Garibi et al. "
                        "2024); made for models of few steps, such as SDXL Turbo. No guidance (CFG 1).",
            inputs=[
                *inputs(4, scheduler="simple", which="The paper's on SDXL Turbo is simple: timesteps 999, 749, 499 and 249."),
                io.Int.Input("iterations", default=9, min=0, max=100,
                             tooltip="Renoisings a step, each a model evaluation; 0: DDIM inversion. Paper: 9 on SDXL "
                                     "Turbo."),
                io.Int.Input("average", default=2, min=1, max=100,
                             tooltip="How many of the last predictions are averaged; 1: only the last. Paper: 2 on "
                                     "SDXL Turbo."),
                io.Int.Input("early_iterations", default=5, min=0, max=100,
                             tooltip="Predictions at the cleanest levels (timesteps under 250), all of them averaged; "
                                     "0 and 1: DDIM inversion there. Paper: 5 on SDXL Turbo."),
                io.Float.Input("eta", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="0 inverts the deterministic sampler; any ODE sampler replays it. Over 0 "
                                       "inverts euler ancestral at this eta with noise from the seed, which noise "
                                       "correction then fits to each step; Replay's own SAMPLER adds it again. Paper: "
                                       "0 on SDXL, 1 on SDXL Turbo. Not on flow models."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the noise at eta over 0."),
                own_sigmas(),
            ],
            outputs=outputs())

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


class PalimpsestNegativePromptInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNegativePromptInvert", display_name="Negative-Prompt Invert",
            category="palimpsest/inversion",
            description="DDIM inversion that takes the source prompt as the negative prompt (Miyake et al. 2023): the "
                        "source comes back at any CFG, without optimisation. Replay Inversion puts it in place of the "
                        "negative.",
            inputs=[
                *inputs(),
                io.Float.Input("interpolation", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Moves the learned negative from the source prompt (0, the paper) towards the "
                                       "connected negative (1): edits come through more, the source less. ProxEdit "
                                       "uses 1 with MasaCtrl."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The null prompt, for an interpolation over 0."),
                own_sigmas(),
            ],
            outputs=outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, interpolation, negative=None,
                sigmas=None) -> io.NodeOutput:
        if (negative is None) == (interpolation > 0):
            raise ValueError(f"Negative-Prompt Invert has an interpolation of {interpolation:g} and "
                             f"{'no' if negative is None else 'a'} negative: connect the null prompt and set "
                             "interpolation over 0, or neither (the paper).")
        if prediction_type(model) == "flow":
            raise ValueError("Negative-prompt inversion is known for eps and v models, this MODEL is a flow model: use "
                             "DDIM Invert, and CFG 1 to reconstruct.")
        theta = negative_prompt.learned(source, negative, interpolation)

        def solve(*args, **kwargs):
            return ddim.invert(*args, **kwargs), theta
        return invert("Negative-Prompt Invert", "Negative Prompt", model, source, latent, steps, scheduler, sigmas,
                      solve, interpolation=interpolation)


NODES = [PalimpsestFixedPointInvert, PalimpsestReNoiseInvert, PalimpsestNegativePromptInvert]
