"""EDICT Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.edict import METHOD, P
from ..search import aliases
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestEDICTInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestEDICTInvert", display_name="EDICT Invert", category="palimpsest/inversion",
            description="Exact inversion with two coupled latents (Wallace et al. 2023). Replay with the same CFG "
                        "and prompts returns the picture. Two model evaluations per step, also in Replay.",
            **aliases("exact inversion", "lossless inversion", "perfect reconstruction", "coupled latents"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "p", step=0.01, tooltip=(
                    "Mixing weight of the two latents after each step. Lower returns less exactly, with more steps "
                    f"still less. 1 never mixes. Paper: {P}.")),
                *guidance_inputs("Guidance of the inversion. Sample at the same value. Paper: 3 for real pictures."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, p, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative, p=p))
