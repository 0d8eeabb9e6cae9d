"""FlowEdit Invert."""
from comfy_api.latest import io

from ....editing.inverting import invert
from ....inversion.flow.flow_edit import METHOD
from ...search import aliases
from ...widgets import guidance_inputs, inversion_inputs, inversion_outputs, setting_input, sigmas_input


class PalimpsestFlowEditInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFlowEditInvert", display_name="FlowEdit Invert", category="palimpsest/inversion",
            description="Noises the picture to every level and keeps what the model misses of it there. Replay then "
                        "moves the picture along the difference of both prompts' velocities, a direct path (Kulikov "
                        "et al. 2025). The source prompt returns the picture. Flow, eps and v models.",
            **aliases("flow edit", "flux editing", "SD3 editing", "inversion-free editing", "edit without inversion",
                      "Qwen-Image editing", "Z-Image editing"),
            inputs=[*inversion_inputs(METHOD, "Number of steps. The picture returns with any number. Paper: 50 on SD3, "
                                              "28 on Flux. Qwen-Image, Z-Image, Chroma: 30 (ours, untuned).",
                                       "Paper: simple."),
                    setting_input(METHOD, "seed", control_after_generate=True,
                                  tooltip="Seed of the noise. The picture returns with any seed."),
                    *guidance_inputs("CFG of the source prompt. Paper: 3.5 on SD3, with 13.5 for the target; 1 on "
                                     "Flux, which reads FluxGuidance. Qwen-Image, Z-Image, Chroma: 1.5 with 5 (ours, "
                                     "untuned). SD: the target's, 3 and 3 (ours)."),
                    sigmas_input(),
                    setting_input(METHOD, "align", step=0.005, optional=True, tooltip=(
                        "How far each step is drawn to the source (FlowAlign, Kim et al. 2025). Paper: 0.01, with the "
                        "source CONDITIONING as the negative of sampling and CFG 13.5. 0: FlowEdit.")),
                    setting_input(METHOD, "n_avg", optional=True, tooltip=(
                        "Noises a level, whose edits are averaged. Each costs as much as the first. Paper: 1.")),
                    setting_input(METHOD, "n_min", optional=True, tooltip=(
                        "Last steps that sample the target prompt alone. They draw fine detail again, but outside of "
                        "Latent Blend's mask. Paper: 0."))],
            outputs=inversion_outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, seed, cfg, negative=None, sigmas=None,
                align=0.0, n_avg=1, n_min=0) -> io.NodeOutput:
        return io.NodeOutput(*invert(METHOD, model, source, latent, steps, scheduler, sigmas, cfg, negative, seed=seed,
                                     align=align, n_avg=n_avg, n_min=n_min))
