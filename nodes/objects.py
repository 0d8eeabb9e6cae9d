"""Editing an object that a prompt names: rewritten by score distillation, moved and resized, removed."""
import re

import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy_api.latest import io

from ..attention.control import positions, require_unet
from ..attention.store import resolution as nearest
from ..blending.local_blend import latent_mask, warn_if_wide, word_mask
from ..guidance.delta_denoise import PairGuider, descend, levels
from ..guidance.magic_remover import MagicRemover, Surroundings, object_map, union
from ..guidance.self_guidance import Decoded, SelfGuidance, Shown, map_sites
from ..host.sampling import Solver, check_family, prediction_type, run
from ..host.session import attach, editors, require_plain
from ..host.tokens import parse_words
from .attention import AttentionType, refine_input
from .blending import check_attention, check_trajectory
from .runner import InversionType, source_latent


class PalimpsestDeltaDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDeltaDenoise", display_name="Delta Denoise (DDS)", category="palimpsest/guidance",
            description="Changes a picture step by step by the difference of two predictions, the target prompt's on the "
                        "picture and the source prompt's on the original (Hertz et al. 2023). A sampler of its own, without an "
                        "inversion.",
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
            raise ValueError(f"Delta Denoise (DDS) draws levels from {start:g} to {end:g} of the schedule, and there are none: "
                             "lower start or raise end (paper: 0.05 and 0.95).")
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
            description="Moves and resizes the object that words name and keeps its looks and the other objects, by guidance "
                        "from cross-attention maps (Epstein et al. 2023). Sample with Prompt Edit's target and Replay.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.String.Input("words", default="", tooltip="The object, by words that both prompts have: 'heart', or better "
                                "all of its own, 'purple, heart'; the second of two is 'heart#2'."),
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
                               tooltip="Maps are read where the grid's side is this share of the latent's, or the nearest "
                                       "coarser the model has: 0.5 is 32² tokens of a 64² latent. Authors: 0.25 on SDXL."),
                io.Float.Input("shape", default=1.0, min=0.0, max=10.0, step=0.05, optional=True,
                               tooltip="Weight of the object's shape, moved and resized. 0 leaves it free, for position or size alone."),
                io.Float.Input("position", default=0.0, min=0.0, max=100.0, step=0.05, optional=True,
                               tooltip="Weight of its centroid, moved: where it is, whatever its shape."),
                io.Float.Input("size", default=0.0, min=0.0, max=100.0, step=0.05, optional=True,
                               tooltip="Weight of its size, resized: how much of the picture it covers, wherever."),
                InversionType.Input("looks", optional=True, tooltip="Of another picture, of the same steps and size: the object gets the "
                                    "looks of its words there. appearance is their weight."),
                io.String.Input("looks_words", default="", optional=True,
                                tooltip="The object in that picture's prompt. Empty: the same words."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, move_x, move_y, resize, others, scale, appearance, start, end, resolution, shape=1.0,
                position=0.0, size=0.0, looks=None, looks_words="") -> io.NodeOutput:
        require_unet(model, "Self-Guidance")
        check_family(model, inversion)
        if looks is not None:
            check_family(model, looks)
        if not (shape or position or size or appearance or others.strip()):
            raise ValueError("Self-Guidance has shape, position, size and appearance at 0 and no others, so that nothing is guided: "
                             "give one of them a weight (shape 1 moves the object).")
        if looks is not None and not appearance:
            raise ValueError("Self-Guidance has looks of another picture and appearance at 0, so that nothing would take them: raise "
                             "appearance (0.05 does well), or disconnect looks.")
        if not words.strip():
            raise ValueError("Self-Guidance moves an object, and no word names one: write those of the prompt that do, as in "
                             "'purple, heart'.")
        if start >= end:
            raise ValueError(f"Self-Guidance starts at {start:g} and ends at {end:g}, so that no step is left: lower start or "
                             "raise end (0 and 0.8 do well).")
        sites = map_sites(positions(model.model.diffusion_model), nearest(model, resolution))
        decoded, donor, donor_decoded = Decoded(inversion, start, end), None, None
        if looks is not None:
            donor, donor_decoded = Shown(looks, sites, start, end, lends=True), Decoded(looks, start, end, lends=True)
        for reader in filter(None, (decoded, donor, donor_decoded)):
            model = attach(model, reader)
        return io.NodeOutput(attach(model, SelfGuidance(
            inversion, sites, start, end, words=words, others=others, move=(move_x, move_y), resize=resize, scale=scale,
            appearance=appearance, shape=shape, position=position, size=size, decoded=decoded, donor=donor, donor_decoded=donor_decoded,
            donor_words=looks_words)))


class PalimpsestMagicRemover(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMagicRemover", display_name="MagicRemover", category="palimpsest/guidance",
            description="Removes the object that words name: its place is filled from what lies around it, and nothing else "
                        "changes (Yang et al. 2023). Sample a prompt of what is to be seen there.",
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.String.Input("words", default="", tooltip="The object, by all words of the source prompt that are its own: "
                                "'purple, heart'; the second of two is 'heart#2'."),
                io.Float.Input("threshold", default=0.0, min=0.0, max=0.99, step=0.01, tooltip=(
                    "Where the words' maps reach this share of their largest value is the object's place. 0: found in the maps "
                    "themselves.")),
                io.Float.Input("scale", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="How far the latent is moved away from the words, where the sampled prompt has them. "
                                       "Program: 1. 0: the place is only filled."),
                io.Float.Input("start", default=0.15, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule at which it begins. Program: 0.15."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share at which the removal ends; the rest of the picture is held to the end. Program: 1."),
                io.Mask.Input("mask", optional=True, tooltip="1 on the object, in place of ATTENTION."),
                AttentionType.Input("attention", optional=True, tooltip="From Attention Store, to find the object's place."),
                refine_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, threshold, scale, start, end, mask=None, attention=None, refine=True) -> io.NodeOutput:
        require_unet(model, "MagicRemover")
        check_trajectory(model, inversion, "MagicRemover")
        if (mask is None) == (attention is None):
            has = "neither MASK nor ATTENTION" if mask is None else "both MASK and ATTENTION"
            raise ValueError(f"MagicRemover has {has} to tell the object's place: connect one of them.")
        if attention is not None and not words.strip():
            raise ValueError("MagicRemover has ATTENTION and no words to find in it: write the object's, as in 'purple, heart'.")
        if start >= end:
            raise ValueError(f"MagicRemover starts at {start:g} and ends at {end:g}, so that no step is left: lower start or "
                             "raise end (0.15 and 1 do well).")
        before = [e for e in editors(model) if isinstance(e, MagicRemover)]
        if any(e.inversion is not inversion for e in before):
            raise ValueError("The MagicRemover before this one holds another INVERSION than this, and both remove objects of one "
                             "picture: connect the same INVERSION to both.")
        size = tuple(inversion.shape[-2:])
        if mask is not None:
            place, share = latent_mask(mask, size), nearest(model, 0.25)
        else:
            check_attention(attention, inversion)
            found = parse_words(words, attention.tokens)
            columns = [[attention.columns(i, [word]) for word in found[i % len(found)]] for i in range(inversion.batch)]
            maps = object_map(attention.chosen(refine).movedim(1, -1), columns)
            place, share = word_mask(maps, size, threshold, refine, grow=False), attention.share
            warn_if_wide("MagicRemover", place)
        if inversion.tokens:
            parse_words(words, inversion.tokens)  # an unknown word is an error
        names = tuple(filter(str.strip, re.split(r"[,\n]", words)))
        removers = [*before, MagicRemover(inversion, names, place, scale, share, start, end)]
        around = Surroundings(inversion, union([e.place for e in removers]), min(e.start for e in removers))
        held = next((e for e in editors(model) if isinstance(e, Surroundings)), None)
        return io.NodeOutput(attach(attach(model, removers[-1]), around, replacing=held))


NODES = [PalimpsestDeltaDenoise, PalimpsestSelfGuidance, PalimpsestMagicRemover]
