"""EDICT Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert, recorded_theta
from ...inversion import edict
from ..checks import check_guidance
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestEDICTInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestEDICTInvert", display_name="EDICT Invert", category="palimpsest/inversion",
            description="Exact inversion with two coupled latents (Wallace et al. 2023). Replay with the same CFG "
                        "and prompts returns the picture. Two model evaluations per step, also in Replay.",
            inputs=[
                *inversion_inputs(),
                io.Float.Input("p", default=edict.P, min=0.5, max=1.0, step=0.01,
                               tooltip="Mixing weight of the two latents after each step. Lower is more stable and "
                                       f"less exact. 1 never mixes. Paper: {edict.P}."),
                *guidance_inputs("Guidance of the inversion. Sample at the same value. Paper: 3 for real pictures."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, p, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("EDICT Invert", cfg, negative)

        def solve(*args, **kwargs):
            pairs = edict.invert(*args, p=p, **kwargs)
            return [x for x, _ in pairs], {"y_minus_x": recorded_theta([y - x for x, y in pairs], "level")}
        return invert("EDICT Invert", "EDICT", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative,
                      p=p, guidance=cfg)
