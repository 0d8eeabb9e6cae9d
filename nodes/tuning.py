"""Inversions that learn along a trajectory how the target is to be sampled."""
import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ..attention.control import positions, require_unet
from ..attention.layers import parse_layers, places
from ..attention.maps import recording
from ..attention.store import resolution
from ..host.adding import adding, measuring
from ..host.gradients import prompted
from ..inversion import kv, prompt_tuning, style_diffusion
from ..inversion.trajectory import Theta
from .runner import InversionType, learn


def inputs(iterations, why):
    """MODEL, INVERSION, the null prompt and how long to learn, which each of these nodes begins with."""
    return [
        io.Model.Input("model", tooltip="The MODEL the picture was inverted with, before any editor."),
        InversionType.Input("inversion", tooltip="The trajectory to follow: from DDIM Invert, Fixed-Point Invert or "
                                                         "ReNoise Invert."),
        io.Conditioning.Input("negative", tooltip="The negative prompt that you will sample with (the paper's: an empty one)."),
        io.Float.Input("cfg", default=7.5, min=1.1, max=100.0, step=0.1,
                       tooltip="The CFG that you will sample at: the picture comes back at this one. Not the paper's number."),
        io.Int.Input("iterations", default=iterations, min=1, max=500,
                     tooltip=f"The most updates of a step, three model passes each. {why}"),
        io.Float.Input("tolerance", default=1e-5, min=0.0, max=1.0, step=1e-6, round=1e-7,
                       tooltip="A step ends once its latent is this near the inversion's (mean square); the limit grows by twice "
                               "this at every fiftieth of the schedule. Higher is faster. Null-text inversion's: 1e-5."),
    ]


def tokens_for(chosen, inversion):
    """The embedding [B,tokens,D] of a CONDITIONING, one for each picture."""
    if len(chosen) != 1:
        raise ValueError(f"The CONDITIONING has {len(chosen)} entries, one is needed: remove Conditioning (Combine).")
    embedding = chosen[0][0]
    if inversion.batch % len(embedding):
        raise ValueError(f"The INVERSION holds {inversion.batch} pictures, the CONDITIONING {len(embedding)} prompts: give one "
                         "prompt for all, or one a picture.")
    return repeat_to_batch_size(embedding, inversion.batch)


class PalimpsestPromptTuningInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptTuningInvert", display_name="Prompt Tuning Invert", category="palimpsest/inversion",
            description="Tunes the prompt's embedding for each step, so that sampling with guidance follows the inversion "
                        "(Dong et al. 2023). Replay Inversion mixes it with the target's: more of the target, more of the "
                        "edit.",
            inputs=[
                *inputs(10, "Paper: 5, of another optimiser."),
                io.Float.Input("mix", default=0.8, min=0.0, max=0.99, step=0.01,
                               tooltip="The target prompt's share of the embedding that is sampled with; the rest is what was "
                                       "tuned. 0: the picture itself, with any prompt. The paper's eta, over 0 to 1, for which "
                                       "no number was found."),
                io.Conditioning.Input("target", optional=True,
                                      tooltip="The prompt whose embedding the first step begins with. The paper's: the target. "
                                              "Empty: the inversion's source prompt, which serves many targets."),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, mix, target=None) -> io.NodeOutput:
        chosen = inversion.conditioning if target is None else target
        start, pooled = tokens_for(chosen, inversion), chosen[0][1].get("pooled_output")

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            theta, losses = prompt_tuning.optimise(
                lambda x, sigma: prompted(net, extra_args, "null", x, sigma),
                lambda x, sigma, c: prompted(net, extra_args, "start", x, sigma, c),
                path, sigmas, start.to(x), cfg=cfg, iterations=iterations, tolerance=tolerance, flow=flow, callback=callback,
                disable=disable)
            kept = {"cond": theta, "cond_mix": Theta(torch.tensor([mix]), "run", "prediction")}
            if pooled is not None:
                kept["cond_pooled"] = Theta(pooled.float().cpu()[None].clone(), "run", "prediction")
            return kept, {"losses": losses}

        return learn("Prompt Tuning Invert", "Prompt Tuning", model, inversion, solve, {"start": chosen, "null": negative},
                     guidance=cfg)


class PalimpsestStyleDiffusionInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestStyleDiffusionInvert", display_name="StyleDiffusion Invert", category="palimpsest/inversion",
            description="Learns at each step how cross-attention's values are to be scaled and shifted to bring the picture back "
                        "with guidance; its maps, and so the layout, stay (Li et al. 2023). Replay Inversion does so to the "
                        "target's.",
            inputs=[
                *inputs(30, "So many in the first step, a twentieth of them in the last, as the authors fade theirs: 100, of a "
                            "network."),
                io.Float.Input("regularise", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="Weight of attention regularisation: higher holds the words' maps nearer to those of the "
                                       "inversion, 0 leaves them free. The authors': 1."),
                io.Float.Input("end", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule until which another prompt gets what was learned; higher keeps "
                                       "more of the picture and hinders the edit. The source prompt always gets it. The "
                                       "authors': 0.5."),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, regularise, end) -> io.NodeOutput:
        require_unet(model, "StyleDiffusion Invert")
        share = resolution(model, 0.25)
        sites = [p for p, s in positions(model.model.diffusion_model).items() if s == share and p[0] != "middle"]
        shape = tokens_for(inversion.conditioning, inversion).shape

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            def cond(x, sigma, scale, shift):
                maps = []
                options = recording(extra_args["model_options"], sites, maps)
                options = options if shift is None else adding(options, shift, scale=scale)
                return prompted(net, {**extra_args, "model_options": options}, "source", x, sigma), maps

            theta, losses = style_diffusion.optimise(
                lambda x, sigma: prompted(net, extra_args, "null", x, sigma), cond, path, sigmas, shape, cfg=cfg,
                regularise=regularise, iterations=iterations, tolerance=tolerance, flow=flow, callback=callback, disable=disable)
            return {**theta, "value_end": Theta(torch.tensor([end]), "run", "prediction")}, {"losses": losses}

        return learn("StyleDiffusion Invert", "StyleDiffusion", model, inversion, solve, {"null": negative}, guidance=cfg)


class PalimpsestKVInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestKVInvert", display_name="KV Inversion", category="palimpsest/inversion",
            description="Learns at each step what the keys and values of self-attention lack to bring the picture back with "
                        "guidance: its contents, for a prompt that changes an action (Huang et al. 2023). Replay Inversion adds "
                        "them to the target's.",
            inputs=[
                *inputs(10, "Not the paper's number."),
                io.String.Input("layers", default="", tooltip=(
                    "Layers of self-attention, written as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, counted "
                    "from 0. More of them hold more of the picture and take more memory. Empty: the last on each grid of up "
                    "(SD1.x and SD2.x: u2, u5, u8; SDXL: u2.9, u5.1). Not the paper's.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, layers) -> io.NodeOutput:
        require_unet(model, "KV Inversion")
        network = model.model.diffusion_model
        chosen = parse_layers(layers, network) if layers.strip() else last_of_each_grid(network)

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            def under(options, x, sigma):
                return prompted(net, {**extra_args, "model_options": options}, "source", x, sigma)

            shapes, options = {}, extra_args["model_options"]
            with torch.no_grad():
                under(measuring(options, shapes), x, sigmas[:1].expand(len(x)))
            named = {"content." + ".".join(map(str, place)): place for place in sorted(chosen)}
            theta, losses = kv.optimise(
                lambda x, sigma: prompted(net, extra_args, "null", x, sigma),
                lambda x, sigma, deltas: under(adding(options, contents={named[n]: d for n, d in deltas.items()}), x, sigma),
                path, sigmas, {name: (2, *shapes[place]) for name, place in named.items()}, cfg=cfg, iterations=iterations,
                tolerance=tolerance, flow=flow, callback=callback, disable=disable)
            return theta, {"losses": losses}

        return learn("KV Inversion", "KV", model, inversion, solve, {"null": negative}, guidance=cfg)


def last_of_each_grid(network) -> frozenset:
    """The last layer on each grid of the up section."""
    return frozenset({p.share: p.position for p in places(network) if p.section == "u"}.values())


NODES = [PalimpsestPromptTuningInvert, PalimpsestStyleDiffusionInvert, PalimpsestKVInvert]
