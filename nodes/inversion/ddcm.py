"""DDCM Invert."""
from comfy_api.latest import io

from ...editing.inverting import invert
from ...inversion.ddcm import METHOD
from ..search import aliases
from ..widgets import inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestDDCMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDDCMInvert", display_name="DDCM Invert (InfEdit)", category="palimpsest/inversion",
            description="Virtual inversion: noises the picture to every level and keeps what the model misses of it "
                        "there (Xu et al. 2024). Each step of Replay adds that to the target, so details come along. "
                        "Replay returns the picture. Sample the target at a low CFG (paper: 2.3). Eps and v models.",
            inputs=[*inversion_inputs(METHOD, "Number of steps. The picture returns with any number. Paper: 12, on a "
                                              "consistency model."),
                    setting_input(METHOD, "eta", step=0.01, tooltip=(
                        "Share of each step's noise that is drawn anew. 0: all levels share one noise, which carries "
                        "most of the picture over. Paper: 1.")),
                    setting_input(METHOD, "seed", control_after_generate=True,
                                  tooltip="Seed of the noise. The picture returns with any seed."),
                    sigmas_input()],
            outputs=inversion_outputs(own_reverse=True),
            **aliases("virtual inversion", "inversion-free editing"))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, eta, seed, sigmas=None) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, eta=eta, seed=seed))
