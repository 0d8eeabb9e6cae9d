"""Delta Denoise (DDS)."""
import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy_api.latest import io

from ...editing.editor import require_plain
from ...editing.inverting import source_latent
from ...guidance.delta_denoise import descend, levels
from ...host.guiders import PairGuider
from ...host.sampling import Solver, prediction_type, sample_with
from ..search import aliases


class PalimpsestDeltaDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDeltaDenoise", display_name="Delta Denoise (DDS)", category="palimpsest/guidance",
            description="Optimises a picture along the difference of two predictions: the target prompt's on the "
                        "picture, the source prompt's on the original (Hertz et al. 2023). Needs no sampler and no "
                        "inversion.",
            **aliases("DDS", "delta denoising score", "score distillation", "SDS", "optimize image",
                      "edit without inversion"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. LoRA is allowed."),
                io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="The prompt of the wanted picture, in words as close to the "
                                                        "source's as possible."),
                io.Conditioning.Input("negative", tooltip="Both predictions are guided away from it. Paper: the empty "
                                                          "prompt."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. Where its noise mask is 0, nothing "
                                                  "changes."),
                io.Int.Input("iterations", default=200, min=1, max=10000,
                             tooltip="Optimisation steps, two predictions each. Paper: 200."),
                io.Float.Input("lr", default=0.1, min=0.0001, max=10.0, step=0.001,
                               tooltip="Step size, as the learning rate in the authors' notebook at 64² latents. "
                                       "Paper: 0.1."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1,
                               tooltip="CFG of both predictions. Paper: 7.5."),
                io.Float.Input("start", default=0.05, min=0.001, max=0.999, step=0.001,
                               tooltip="The noisiest level to draw, as a share of the schedule. Paper: 0.05 (timestep "
                                       "950)."),
                io.Float.Input("end", default=0.95, min=0.001, max=0.999, step=0.001,
                               tooltip="The cleanest level to draw. Paper: 0.95 (timestep 50)."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Seed of the drawn noises and levels."),
            ],
            outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls, model, source, target, negative, latent, iterations, lr, cfg, start, end, seed) -> io.NodeOutput:
        require_plain(model, "Delta Denoise (DDS)")
        flow = prediction_type(model) == "flow"
        if start > end:
            raise ValueError(f"Delta Denoise (DDS) draws levels from {start:g} to {end:g} of the schedule, but there "
                             "are none: lower start or raise end (paper: 0.05 and 0.95).")
        x = source_latent(model, latent)
        generator = torch.Generator().manual_seed(seed)
        sigmas = levels(model.get_model_object("model_sampling"), iterations, start, end, generator)
        mask = latent.get("noise_mask")
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask, x.shape, model.load_device)

        def solve(*args, **kwargs):
            return descend(*args, rate=lr, generator=generator, flow=flow, mask=mask, **kwargs)

        guider = PairGuider(model, {"source": source, "target": target, "negative": negative}, cfg)
        edited = sample_with(guider, x, sigmas, Solver(solve), seed=seed)
        return io.NodeOutput({**latent, "samples": edited.to(comfy.model_management.intermediate_device())})
