"""DDPM Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.ddpm import METHOD
from ..search import aliases
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
            **aliases("edit friendly noise", "noise maps of photo", "edit real photo", "DDPM inversion",
                      "stochastic inversion"),
            inputs=[*inversion_inputs(METHOD), *seeded_inputs(METHOD),
                    *guidance_inputs("Guidance of the inversion. Paper: 3.5 with an empty negative prompt, 15 to "
                                     "sample the target."),
                    sigmas_input(), last_residual_input(METHOD)],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative,
                                     eta=eta, seed=seed, last_residual=last_residual))
