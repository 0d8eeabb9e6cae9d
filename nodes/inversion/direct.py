"""Direct Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.direct import METHOD
from ..search import aliases
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestDirectInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDirectInvert", display_name="Direct Invert (PnP Inversion)",
            category="palimpsest/inversion",
            description="DDIM inversion that also records an offset for each step. With it, sampling at this CFG "
                        "returns the picture (Ju et al. 2024). The offsets act in a replay of the source prompt "
                        "with the same CFG and negative prompt. With an editor it equals DDIM Invert, whose source "
                        "branch never drifts.",
            **aliases("direct inversion", "pnp inversion", "faithful inversion", "PIE bench",
                      "inversion with guidance"),
            inputs=[
                *inversion_inputs(METHOD),
                setting_input(METHOD, "scale", step=0.05, tooltip=(
                    "Share of each step's error that its offset corrects. 1 returns the picture (paper). 0 is plain "
                    "DDIM.")),
                *guidance_inputs("The CFG you will replay at, for the offsets. The inversion itself runs at 1. The "
                                 "paper edits at 7.5."), sigmas_input()],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, scale, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative,
                                     scale=scale))
