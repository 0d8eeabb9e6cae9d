"""Editing an object that a prompt names: rewritten by score distillation, moved and resized, removed."""
import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy_api.latest import io

from ..attention.control import require_unet
from ..attention.store import resolution as nearest
from ..guidance.delta_denoise import PairGuider, descend, levels
from ..guidance.self_guidance import SelfGuidance
from ..host.sampling import Solver, check_family, prediction_type, run
from ..host.session import attach, require_plain
from .runner import InversionType, source_latent


class PalimpsestDeltaDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDeltaDenoise", display_name="Delta Denoise (DDS)", category="palimpsest/guidance",
            description="Changes a picture step by step by the difference of two predictions, the target prompt's on the picture and the "
                        "source prompt's on the original (Hertz et al. 2023). A sampler of its own, without an inversion.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL before any Palimpsest editor; LoRA may be on it."),
                io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="The prompt that describes what it shall become, in words as near as can be."),
                io.Conditioning.Input("negative", tooltip="What both predictions are guided away from. Paper: the empty prompt."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. Where a noise mask on it is 0, nothing changes."),
                io.Int.Input("iterations", default=200, min=1, max=10000,
                             tooltip="Steps of the optimisation, each two predictions. Paper: 200."),
                io.Float.Input("lr", default=0.1, min=0.0001, max=10.0, step=0.001,
                               tooltip="How far an iteration goes: the notebook's learning rate at 64² latents. Paper: 0.1."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1,
                               tooltip="Guidance of both predictions. Paper: 7.5."),
                io.Float.Input("start", default=0.05, min=0.001, max=0.999, step=0.001,
                               tooltip="The noisiest level that is drawn, as a share of the schedule. Paper: 0.05 (timestep 950)."),
                io.Float.Input("end", default=0.95, min=0.001, max=0.999, step=0.001,
                               tooltip="The cleanest level that is drawn. Paper: 0.95 (timestep 50)."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the noises and levels that are drawn."),
            ],
            outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls, model, source, target, negative, latent, iterations, lr, cfg, start, end, seed) -> io.NodeOutput:
        require_plain(model, "Delta Denoise (DDS)")
        flow = prediction_type(model) == "flow"
        if start > end:
            raise ValueError(f"Delta Denoise (DDS) draws levels from {start:g} to {end:g} of the schedule, and there are none: lower start "
                             "or raise end (paper: 0.05 and 0.95).")
        x = source_latent(model, latent)
        generator = torch.Generator().manual_seed(seed)
        sigmas = levels(model.get_model_object("model_sampling"), iterations, start, end, generator)
        mask = latent.get("noise_mask")
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask, x.shape, model.load_device)

        def solve(*args, **kwargs):
            return descend(*args, rate=lr, generator=generator, flow=flow, mask=mask, **kwargs)

        edited = run(PairGuider(model, source, target, negative, cfg), x, sigmas, Solver(solve), seed=seed)
        return io.NodeOutput({**latent, "samples": edited.to(comfy.model_management.intermediate_device())})


class PalimpsestSelfGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSelfGuidance", display_name="Self-Guidance", category="palimpsest/guidance",
            description="Moves and resizes the object that words name and keeps its looks and the other objects, by guidance from "
                        "cross-attention maps (Epstein et al. 2023). Sample with Prompt Edit's target and Replay.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.String.Input("words", default="", tooltip="The object, by words that both prompts have: 'heart', or better all of its own, "
                                "'purple, heart'; the second of two is 'heart#2'."),
                io.Float.Input("move_x", default=0.0, min=-1.0, max=1.0, step=0.01,
                               tooltip="How far it moves to the right, as a share of the picture's width; under 0 to the left."),
                io.Float.Input("move_y", default=0.0, min=-1.0, max=1.0, step=0.01,
                               tooltip="How far it moves down, as a share of the picture's height; under 0 up."),
                io.Float.Input("resize", default=1.0, min=0.1, max=10.0, step=0.05,
                               tooltip="Its new width and height over the old."),
                io.String.Input("others", default="", tooltip="Words of other objects, which are to stay where they are."),
                io.Float.Input("scale", default=1000.0, min=1.0, max=100000.0, step=10.0,
                               tooltip="Strength of the guidance. Too high breaks the picture up, too low leaves the object where it is."),
                io.Float.Input("appearance", default=0.05, min=0.0, max=10.0, step=0.01,
                               tooltip="Weight of keeping the objects' looks, beside 1 for their shapes; higher holds the object back."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it begins."),
                io.Float.Input("end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it ends."),
                io.Float.Input("resolution", default=0.5, min=0.0, max=1.0, step=0.0625,
                               tooltip="Maps are read where the grid's side is this share of the latent's, or the nearest coarser the model "
                                       "has: 0.5 is 32² tokens of a 64² latent."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, move_x, move_y, resize, others, scale, appearance, start, end,
                resolution) -> io.NodeOutput:
        require_unet(model, "Self-Guidance")
        check_family(model, inversion)
        if not words.strip():
            raise ValueError("Self-Guidance moves an object, and no word names one: write those of the prompt that do, as in "
                             "'purple, heart'.")
        if start >= end:
            raise ValueError(f"Self-Guidance starts at {start:g} and ends at {end:g}, so that no step is left: lower start or raise "
                             "end (0 and 0.8 do well).")
        editor = SelfGuidance(inversion, words, others, (move_x, move_y), resize, nearest(model, resolution), scale, appearance, start,
                              end)
        return io.NodeOutput(attach(model, editor))


NODES = [PalimpsestDeltaDenoise, PalimpsestSelfGuidance]
