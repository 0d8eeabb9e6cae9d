"""Inputs and outputs that several nodes share."""
import comfy.model_management
import comfy.sample
import comfy.samplers
from comfy_api.latest import io

from ..editing.layers import parse_layers

PromptEditType, AttentionType = io.Custom("PROMPT_EDIT"), io.Custom("ATTENTION")


def threshold_input(paper="0.3"):
    return io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
        "Share of the words' largest value that counts as the words. Higher is tighter. 0: found in the maps "
        f"themselves. Paper: {paper}, with refine off."))


def refine_input():
    return io.Boolean.Input("refine", default=True, optional=True, tooltip=(
        "Whether the words' maps are made finer and whole by self-attention: what looks alike counts alike. Paper: "
        "off."))


def guidance_inputs(paper, default=1.0):
    """The CFG of the inversion and its negative."""
    return [
        io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, tooltip=paper),
        io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt of that guidance (the papers': "
                                                                 "an empty one). Not used at CFG 1."),
    ]


def seeded_inputs(eta):
    return [
        io.Float.Input("eta", default=eta, min=0.01, max=1.0, step=0.01,
                       tooltip="Share of DDPM's noise in each step; 1 is DDPM, towards 0 it is DDIM. The paper takes "
                               f"{eta:g}."),
        io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                     tooltip="Of the noise the levels are drawn with; the picture comes back with any."),
    ]


def last_residual_input():
    return io.Combo.Input("last_residual", options=["auto", "keep", "zero"], default="auto", optional=True, tooltip=(
        "What the last step misses of the picture. keep adds it, so that the picture returns exactly; in few steps it "
        "holds details of the source that every edit then shows. zero leaves it out (the paper's code), which costs "
        "the exact return. auto: zero where the last level is over sigma 0.1, else keep."))


COARSE = "grids of at most half the latent's side (SD1.x and SD2.x: d2-5, m0, u0-5; SDXL: all)"


def layers_input(default):
    return io.String.Input("layers", default="", tooltip=(
        "Layers of self-attention, written as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, counted from "
        f"0. Empty: {default}."))


def share_input(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def null_input():
    return io.Boolean.Input("null_too", default=True, tooltip=(
        "Whether the null prompt's rows are edited too, with what the source shows under the null prompt. On (paper): "
        "guidance weighs the words alone. Off: it weighs the source's features as well, which holds the source "
        "harder."))


def layers_of(text, model, default) -> frozenset:
    network = model.model.diffusion_model
    return parse_layers(text, network) if text.strip() else default(network)


InversionType = io.Custom("INVERSION")


def inversion_inputs(steps=50, why=None, scheduler="ddim_uniform", which="The papers' is ddim_uniform (leading "
                                                                         "spacing)."):
    """MODEL, source, LATENT, steps and scheduler, which every inversion node begins with; `own_sigmas()` goes last."""
    return [
        io.Model.Input("model", tooltip="The MODEL before any Palimpsest editor; LoRA may be on it."),
        io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is."),
        io.Latent.Input("latent", tooltip="The picture, from VAE Encode. A noise mask on it is ignored."),
        io.Int.Input("steps", default=steps, min=1, max=1000,
                     tooltip=why or f"Levels of the trajectory. More reconstruct better; the paper takes {steps}."),
        io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default=scheduler,
                       tooltip=f"The host's schedule. {which}"),
    ]


def sigmas_input():
    return io.Sigmas.Input("sigmas", optional=True,
                           tooltip="A schedule of your own, descending to 0. Wins over steps and scheduler.")


def inversion_outputs(own_reverse=False):
    """INVERSION, noise and SIGMAS; `own_reverse`: no host sampler leads the noise back, only what the method
    recorded."""
    use = ("The picture comes back from it through Replay only." if own_reverse else
           "In KSampler Advanced: add_noise off, same scheduler and steps, CFG 1 to reconstruct. On flow models use "
           "Replay.")
    return [
        InversionType.Output(display_name="inversion"),
        io.Latent.Output(display_name="noise", tooltip=f"The noisiest latent. {use}"),
        io.Sigmas.Output(display_name="sigmas"),
    ]


def concept_inputs(*concept, scale, warmup, threshold):
    return [
        io.Model.Input("model"),
        *concept,
        io.Combo.Input("direction", options=["add", "remove"], default="add",
                       tooltip="Towards the concept or away from it."),
        io.Float.Input("scale", default=scale, min=0.0, max=100.0, step=0.1,
                       tooltip=f"Strength of the concept's guidance. Paper: {scale:g}, 3 to 15."),
        io.Float.Input("warmup", default=warmup, min=0.0, max=1.0, step=0.01,
                       tooltip="Share of the schedule before the concept acts; later keeps more of the composition. "
                               f"Paper: {warmup:g}."),
        io.Float.Input("cooldown", default=1.0, min=0.0, max=1.0, step=0.01,
                       tooltip="Share from which the concept acts no more. Paper: 1, which is never."),
        io.Float.Input("threshold", default=threshold, min=0.0, max=0.999, step=0.005,
                       tooltip="Share of the latent that the concept leaves alone, its least concerned places. Paper: "
                               f"{threshold:g}; 0.75 for whole scenes, 0.99 for small things."),
    ]


def learning_inputs(iterations, why):
    """MODEL, INVERSION, the null prompt and how long to learn, which each of these nodes begins with."""
    return [
        io.Model.Input("model", tooltip="The MODEL the picture was inverted with, before any editor."),
        InversionType.Input("inversion", tooltip="The trajectory to follow: from DDIM Invert, Fixed-Point Invert or "
                                                         "ReNoise Invert."),
        io.Conditioning.Input("negative", tooltip="The negative prompt that you will sample with (the paper's: an "
                                                  "empty one)."),
        io.Float.Input("cfg", default=7.5, min=1.1, max=100.0, step=0.1,
                       tooltip="The CFG that you will sample at: the picture comes back at this one. Not the paper's "
                               "number."),
        io.Int.Input("iterations", default=iterations, min=1, max=500,
                     tooltip=f"The most updates of a step, three model passes each. {why}"),
        io.Float.Input("tolerance", default=1e-5, min=0.0, max=1.0, step=1e-6, round=1e-7,
                       tooltip="A step ends once its latent is this near the inversion's (mean square); the limit "
                               "grows by twice this at every fiftieth of the schedule. Higher is faster. Null-text "
                               "inversion's: 1e-5."),
    ]
