"""Prompt Tuning Invert."""
import torch
from comfy_api.latest import io

from ...editing.inverting import learn, tokens_for
from ...host.guiders import prompted
from ...inversion import prompt_tuning
from ...inversion.trajectory import Theta
from ..widgets import InversionType, learning_inputs


class PalimpsestPromptTuningInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptTuningInvert", display_name="Prompt Tuning Invert",
            category="palimpsest/inversion",
            description="Tunes the prompt's embedding for each step, so that sampling with guidance follows the "
                        "inversion (Dong et al. 2023). Replay Inversion mixes it with the target's. More target "
                        "gives more edit.",
            inputs=[
                *learning_inputs(10, "Paper: 5, with another optimiser."),
                io.Float.Input("mix", default=0.8, min=0.0, max=0.99, step=0.01,
                               tooltip="The target's share of the embedding. The rest is the tuned embedding. 0 "
                                       "returns the picture with any prompt. This is the paper's eta, above 0 and "
                                       "up to 1. No value was found for it."),
                io.Conditioning.Input("target", optional=True,
                                      tooltip="The prompt whose embedding the first step starts from. Paper: the "
                                              "target. Empty: the inversion's source prompt. It suits many targets."),
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
                path, sigmas, start.to(x), cfg=cfg, iterations=iterations, tolerance=tolerance, flow=flow,
                callback=callback,
                disable=disable)
            kept = {"cond": theta, "cond_mix": Theta(torch.tensor([mix]), "run", "prediction")}
            if pooled is not None:
                kept["cond_pooled"] = Theta(pooled.float().cpu()[None].clone(), "run", "prediction")
            return kept, {"losses": losses}

        return learn("Prompt Tuning Invert", "Prompt Tuning", model, inversion, solve,
                     {"start": chosen, "null": negative},
                     guidance=cfg)
