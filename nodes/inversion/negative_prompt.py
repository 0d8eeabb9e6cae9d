"""Negative-Prompt Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.negative_prompt import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestNegativePromptInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNegativePromptInvert", display_name="Negative-Prompt Invert",
            category="palimpsest/inversion",
            description="DDIM inversion that uses the source prompt as the negative prompt (Miyake et al. 2023). "
                        "The source returns at any CFG, without optimisation. Replay Inversion replaces the "
                        "negative prompt.",
            **aliases("NPI", "negative prompt inversion", "fast null text", "inversion with guidance"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "interpolation", step=0.01, tooltip=(
                    "Moves the negative prompt from the source prompt (0, paper) to the connected negative (1). "
                    "Higher makes edits stronger and keeps less source. ProxEdit: 1 with MasaCtrl.")),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The empty prompt, for interpolation above 0."),
                sigmas_input(),
            ],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, interpolation, negative=None,
                sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, negative=negative,
                                     interpolation=interpolation))
