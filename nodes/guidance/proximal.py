"""Proximal Guidance."""
from comfy_api.latest import io

from ...editing.run import attach
from ...guidance.proximal import NORMS, Proximal, guide
from ...host.sampling import check_family
from ..search import aliases
from ..widgets import InversionType


class PalimpsestProximalGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestProximalGuidance", display_name="Proximal Guidance", category="palimpsest/guidance",
            description="Keeps guidance only where source and target clearly differ (ProxEdit, Han et al. 2024). Made "
                        "for Negative-Prompt Invert. Sample at CFG over 1.",
            **aliases("proxedit", "proxnpi", "limit guidance"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Combo.Input("prox", options=list(NORMS), default="l0",
                               tooltip="l0 zeroes small differences, l1 also shrinks the large ones by the threshold. "
                                       "Paper: l0."),
                io.Float.Input("quantile", default=0.7, min=0.0, max=0.99, step=0.01,
                               tooltip="Quantile of the prediction difference that counts as small. Half of the values "
                                       "are the source's and 0, as in the authors' code, so 0.7 drops the smallest 40 "
                                       "% of the target's. Over 0.5. Paper: 0.7, 0.6 to 0.9."),
                io.Float.Input("recon_lr", default=0.1, min=0.0, max=1.0, step=0.01,
                               tooltip="How far the prediction is pulled to the source where the difference is small. "
                                       "1 restores the source, 0 does nothing. From 0.5 on use Euler: uni_pc, DEIS and "
                                       "their like carry on what is pulled. Paper: 0.1, or 0.5 to 1 with "
                                       "use_inversion_guidance."),
                io.Float.Input("recon_start", default=0.6, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where recon_lr begins. Paper: 0.6 (timesteps under 400), "
                                       "sometimes 0.4."),
                io.Int.Input("dilate", default=1, min=0, max=16,
                             tooltip="Latent cells by which edited areas grow. recon_lr acts outside them. Paper: 1."),
                io.Boolean.Input("use_inversion_guidance", default=False, optional=True,
                                 tooltip="Pulls each step's latent to the inversion's at that level, instead of the "
                                         "prediction to the picture. Needs Euler steps. On in the authors' examples, "
                                         "with recon_lr 1 or 0.5."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, prox, quantile, recon_lr, recon_start, dilate,
                use_inversion_guidance=False) -> io.NodeOutput:
        check_family(model, inversion)
        if recon_lr and inversion.latents is None:
            raise ValueError(f"Proximal Guidance needs the source's latents, but the {inversion.method} INVERSION has "
                             "none: invert with a method that keeps its trajectory, such as Negative-Prompt Invert.")
        if quantile <= 0.5:
            raise ValueError(f"Proximal Guidance at quantile {quantile:g} is plain guidance, because half of the "
                             "differences (the source's) are 0: raise it above 0.5 (paper: 0.7).")
        if recon_lr and use_inversion_guidance and inversion.trajectory == "independent":
            raise ValueError("use_inversion_guidance draws the end of Euler's step to the inversion's next latent, but "
                             f"the {inversion.method} INVERSION noises each level by itself and takes steps of its "
                             "own: turn it off, or invert with DDIM Invert.")
        editor = Proximal(inversion, prox, quantile, recon_lr, recon_start, dilate, use_inversion_guidance)
        return io.NodeOutput(guide(attach(model, editor), editor))
