"""BDIA Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.bdia import METHOD
from ..search import aliases
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestBDIAInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestBDIAInvert", display_name="BDIA Invert", category="palimpsest/inversion",
            description="Exact inversion that integrates every step in both directions (Zhang et al. 2023). Replay "
                        "with the same CFG and prompts returns the picture. One model evaluation per step, plus one.",
            **aliases("exact inversion", "lossless inversion", "bidirectional integration", "perfect reconstruction"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "gamma", step=0.01, tooltip=(
                    "Share of each step's error that the next step corrects. Below 1 the noise grows as "
                    "gamma^-steps, and edits suffer. Paper: 0.5 for 10 steps, 1.0 for 40.")),
                *guidance_inputs("Guidance of the inversion. Sample at the same value. Authors: 3 for real pictures."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, gamma, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative,
                                     gamma=gamma))
