"""LEDITS++ Invert."""
from comfy_api.latest import io

from ...editing.inverting import check_stochastic, invert, levels_a_forward, recorded_theta
from ...inversion import ddpm, ledits
from ..checks import check_guidance
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, last_residual_input, sigmas_input


class PalimpsestLEDITSInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLEDITSInvert", display_name="LEDITS++ Invert", category="palimpsest/inversion",
            description="Edit-friendly noise maps for a fast solver, second-order DPM-Solver++ (Brack et al. 2024). "
                        "Replay returns the picture (see last_residual). LEDITS++ on its MODEL edits it. The "
                        "paper's skip is Replay's start. Eps and v models.",
            inputs=[
                *inversion_inputs(30),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Seed of the noise at each level. The picture returns with any seed."),
                *guidance_inputs("Guidance of the inversion. Replay at the same value. Paper: 1 with an empty "
                                 "source prompt, 3.5 with a source prompt."), sigmas_input(), last_residual_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        check_stochastic("LEDITS++ Invert", model)
        check_guidance("LEDITS++ Invert", cfg, negative)
        # guidance magnifies the rounding of a shared forward
        levels = levels_a_forward(model, latent, source) if cfg == 1 else 1

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = ddpm.independent_path(x, sigmas, seed)
            path, maps, denoised = ledits.noise_maps(model, path, sigmas, together=levels, **kwargs)
            return path, {"z": recorded_theta(ddpm.last_residual(maps, sigmas, last_residual)),
                          "denoised": recorded_theta(denoised)}
        return invert("LEDITS++ Invert", "LEDITS++", model, source, latent, steps, scheduler, sigmas, solve, cfg,
                      negative,
                      "independent", seed=seed, guidance=cfg)
