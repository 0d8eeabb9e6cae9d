"""Negative-Prompt Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...host.sampling import prediction_type
from ...inversion import ddim, negative_prompt
from ..widgets import inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestNegativePromptInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNegativePromptInvert", display_name="Negative-Prompt Invert",
            category="palimpsest/inversion",
            description="DDIM inversion that uses the source prompt as the negative prompt (Miyake et al. 2023). "
                        "The source returns at any CFG, without optimisation. Replay Inversion replaces the "
                        "negative prompt.",
            inputs=[
                *inversion_inputs(),
                io.Float.Input("interpolation", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Moves the negative prompt from the source prompt (0, paper) to the "
                                       "connected negative (1). Higher makes edits stronger and keeps less source. "
                                       "ProxEdit: 1 with MasaCtrl."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The empty prompt, for interpolation above 0."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

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
