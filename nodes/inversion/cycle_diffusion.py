"""CycleDiffusion Invert."""
from comfy_api.latest import io

from ...editing.inverting import check_stochastic, invert, levels_a_forward, recorded_theta
from ...inversion import cycle_diffusion, ddpm
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
            inputs=[*inversion_inputs(100), *seeded_inputs(0.1), sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, sigmas=None) -> io.NodeOutput:
        check_stochastic("CycleDiffusion Invert", model)
        levels = levels_a_forward(model, latent, source)

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = cycle_diffusion.posterior_path(x, sigmas, seed, eta)
            path, maps = ddpm.noise_maps(model, path, sigmas, eta=eta, together=levels, **kwargs)
            return path, {"z": recorded_theta(maps)}
        return invert("CycleDiffusion Invert", "CycleDiffusion", model, source, latent, steps, scheduler, sigmas, solve,
                      trajectory="independent", eta=eta, seed=seed)
