"""DNAEdit Invert."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.dna_edit import METHOD
from ...search import aliases
from ...widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestDNAEditInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDNAEditInvert", display_name="DNAEdit Invert", category="palimpsest/inversion",
            description="Inversion for flow models (SD3, Flux) that aligns drawn noise with the picture. Replay asks "
                        "the target where the source was asked and draws it to a picture that moves along (Xie et al. "
                        "2025). No guidance (CFG 1). One model evaluation per step.",
            **aliases("direct noise alignment", "mobile velocity guidance", "MVG", "flux editing", "SD3 editing",
                      "rectified flow editing", "flow inversion"),
            inputs=[
                *inversion_inputs(METHOD, "Number of steps. Paper's code: 28 on Flux, 40 on SD3.5. Other flow "
                                          "models: 28 (ours, untuned).",
                                  "Paper's code: simple."),
                setting_input(METHOD, "mvg", step=0.05, tooltip=(
                    "How freely Replay follows the target. Below 1 each step is drawn to the source, moved along with "
                    "the edit. At 1 the source prompt returns the picture. Paper's code: 0.8.")),
                setting_input(METHOD, "seed", control_after_generate=True,
                              tooltip="Seed of the noise that is aligned. It changes the first step's guess alone."),
                sigmas_input()],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, mvg, seed, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, mvg=mvg, seed=seed))
