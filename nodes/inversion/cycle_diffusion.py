"""CycleDiffusion Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.cycle_diffusion import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, seeded_inputs, sigmas_input


class PalimpsestCycleDiffusionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestCycleDiffusionInvert", display_name="CycleDiffusion Invert",
            category="palimpsest/inversion",
            description="DPM-Encoder: draws noisy latents from the picture's posterior and computes the noise that "
                        "leads sampling through them (Wu & De la Torre 2023). No guidance, as in the paper. Replay "
                        "returns the picture. With the target prompt at CFG 1 to 5 it is CycleDiffusion. Eps and v "
                        "models.",
            **aliases("cycle diffusion", "DPM encoder", "stochastic inversion", "unpaired translation"),
            inputs=[*inversion_inputs(METHOD), *seeded_inputs(METHOD), sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, eta=eta, seed=seed))
