"""DDPM Invert."""
from comfy_api.latest import io

from ...editing.inverting import check_stochastic, invert, levels_a_forward, recorded_theta
from ...inversion import ddpm
from ..checks import check_guidance
from ..widgets import (
    guidance_inputs,
    inversion_inputs,
    inversion_outputs,
    last_residual_input,
    seeded_inputs,
    sigmas_input,
)


class PalimpsestDDPMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDDPMInvert", display_name="DDPM Invert (edit-friendly)", category="palimpsest/inversion",
            description="Noises the picture to every level independently and computes the noise maps that lead DDPM "
                        "sampling through them (Huberman-Spiegelglas et al. 2024). Replay returns the picture (see "
                        "last_residual). Another prompt edits it. The paper's skip is Replay's start: 36 of 100 "
                        "steps is 0.36. Eps and v models.",
            inputs=[*inversion_inputs(100), *seeded_inputs(1.0),
                    *guidance_inputs("Guidance of the inversion. Paper: 3.5 with an empty negative prompt, 15 to "
                                     "sample the target."),
                    sigmas_input(), last_residual_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        check_stochastic("DDPM Invert", model)
        check_guidance("DDPM Invert", cfg, negative)
        # guidance magnifies the rounding of a shared forward
        levels = levels_a_forward(model, latent, source) if cfg == 1 else 1

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = ddpm.independent_path(x, sigmas, seed)
            path, maps = ddpm.noise_maps(model, path, sigmas, eta=eta, together=levels, **kwargs)
            return path, {"z": recorded_theta(ddpm.last_residual(maps, sigmas, last_residual))}
        return invert("DDPM Invert", "DDPM", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative,
                      "independent",
                      eta=eta, seed=seed, guidance=cfg)
