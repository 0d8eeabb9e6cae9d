"""StyleDiffusion Invert."""
import torch
from comfy_api.latest import io

from ...editing.attention_loss import with_maps_recorded
from ...editing.inverting import learn, tokens_for
from ...editing.word_maps import nearest_resolution
from ...host.guiders import prompted
from ...host.unet import require_unet, resolutions
from ...host.unet_inputs import with_added
from ...inversion import style_diffusion
from ...inversion.trajectory import Theta
from ..widgets import InversionType, learning_inputs


class PalimpsestStyleDiffusionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestStyleDiffusionInvert", display_name="StyleDiffusion Invert",
            category="palimpsest/inversion",
            description="Learns for each step a scale and a shift of the cross-attention values, so that guidance "
                        "returns the picture (Li et al. 2023). The maps, and so the layout, stay. Replay Inversion "
                        "applies both to the target.",
            inputs=[
                *learning_inputs(30, "It falls to a twentieth in the last step, as in the authors' code. Authors: "
                                     "100, for a network."),
                io.Float.Input("regularise", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="Weight of attention regularisation. Higher keeps the words' maps closer to "
                                       "the inversion's. 0 leaves them free. Authors: 1."),
                io.Float.Input("end", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule until which a new prompt uses what was learned. "
                                       "Higher keeps more of the picture and weakens the edit. The source prompt "
                                       "always uses it. Authors: 0.5."),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, regularise, end) -> io.NodeOutput:
        require_unet(model, "StyleDiffusion Invert")
        share = nearest_resolution(model, 0.25)
        sites = [p for p, s in resolutions(model.model.diffusion_model).items() if s == share and p[0] != "middle"]
        shape = tokens_for(inversion.conditioning, inversion).shape

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            def cond(x, sigma, scale, shift):
                maps = []
                options = with_maps_recorded(extra_args["model_options"], sites, maps)
                options = options if shift is None else with_added(options, shift, scale=scale)
                return prompted(net, {**extra_args, "model_options": options}, "source", x, sigma), maps

            theta, losses = style_diffusion.optimise(
                lambda x, sigma: prompted(net, extra_args, "null", x, sigma), cond, path, sigmas, shape, cfg=cfg,
                regularise=regularise, iterations=iterations, tolerance=tolerance, flow=flow, callback=callback,
                disable=disable)
            return {**theta, "value_end": Theta(torch.tensor([end]), "run", "prediction")}, {"losses": losses}

        return learn("StyleDiffusion Invert", "StyleDiffusion", model, inversion, solve, {"null": negative},
                     guidance=cfg)
