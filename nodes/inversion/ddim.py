"""DDIM Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.ddim import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestDDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDDIMInvert", display_name="DDIM Invert", category="palimpsest/inversion",
            description="Runs the deterministic sampler backwards, from a picture to its noise (Song et al. 2021). "
                        "No guidance (CFG 1). One model evaluation per step.",
            **aliases("unsampler", "unsample", "image to noise", "noise from image", "reverse sampling", "invert image",
                      "inversion", "reverse diffusion", "img2noise", "find noise of photo", "RF inversion",
                      "inverse sampler"),
            inputs=[*inversion_inputs(METHOD), sigmas_input()], outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas))
