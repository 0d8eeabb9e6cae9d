"""Inputs and outputs that several nodes share."""
import comfy.model_management
import comfy.sample
import comfy.samplers
from comfy_api.latest import io

from ..editing.layers import parse_layers
from ..inversion.method import Method

PromptEditType, AttentionType = io.Custom("PROMPT_EDIT"), io.Custom("ATTENTION")


def threshold_input(paper="0.3"):
    return io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
        "Attention above this share of its maximum counts as the words. Higher is tighter. 0: automatic (Otsu). "
        f"Paper: {paper}, with refine off."))


def refine_input():
    return io.Boolean.Input("refine", default=True, optional=True, tooltip=(
        "Uses self-attention to make the words' maps finer and complete: similar places get similar values. Paper: "
        "off."))


def auto_input(name, tooltip):
    return io.Combo.Input(name, options=["as set", "auto"], default="as set", optional=True, tooltip=tooltip)


def guidance_inputs(paper, default=1.0):
    """The CFG of the inversion and its negative prompt."""
    return [
        io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, tooltip=paper),
        io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt of this guidance. Papers: "
                                                                 "empty. Not used at CFG 1."),
    ]


def setting_input(method: Method, name, **shown):
    """The widget of a method's setting, with the method's own default and range."""
    setting = method.settings[name]
    if setting.choices:
        return io.Combo.Input(name, options=list(setting.choices), default=setting.default, **shown)
    if isinstance(setting.default, str):
        return io.String.Input(name, default=setting.default, **shown)
    kind = io.Int if isinstance(setting.default, int) else io.Float
    return kind.Input(name, default=setting.default, min=setting.least, max=setting.most, **shown)


def seeded_inputs(method: Method):
    return [
        setting_input(method, "eta", step=0.01, tooltip=(
            "Noise of each step, as a share of DDPM's. 1 is DDPM, near 0 is DDIM. "
            f"Paper: {method.settings['eta'].default:g}.")),
        setting_input(method, "seed", control_after_generate=True,
                      tooltip="Seed of the noise at each level. The picture returns with any seed."),
    ]


def last_residual_input(method: Method):
    return setting_input(method, "last_residual", optional=True, tooltip=(
        "The error of the last step. keep adds it back: the picture returns exactly, but after few steps every edit "
        "shows details of the source. zero drops it, as the paper's code does: the return is not exact. auto: zero "
        "if the last noisy level is above sigma 0.1, else keep."))


COARSE = "grids up to half the latent's side (SD1.x and SD2.x: d2-5, m0, u0-5; SDXL: all)"


def layers_input(default):
    return io.String.Input("layers", default="", tooltip=(
        "Self-attention layers, such as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, counted from 0. "
        f"Empty: {default}."))


def share_input(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def null_input():
    return io.Boolean.Input("null_too", default=True, tooltip=(
        "Whether the negative prompt's rows are edited too, with the source's features under it. On (paper): "
        "guidance acts on the words alone. Off: it also amplifies the source's features, which holds the source "
        "harder."))


def layers_of(text, model, default) -> frozenset:
    network = model.model.diffusion_model
    return parse_layers(text, network) or default(network)


InversionType = io.Custom("INVERSION")


OTHER_FLOWS = " Other flow models: the same (ours, untuned)."


def inversion_inputs(method: Method, why="", which="Papers: ddim_uniform (leading spacing)."):
    """MODEL, source, LATENT, steps and scheduler: the first inputs of an inversion node. `sigmas_input()` goes last."""
    return [
        io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. LoRA is allowed."),
        io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is."),
        io.Latent.Input("latent", tooltip="The picture, from VAE Encode. A noise mask on it is ignored."),
        io.Int.Input("steps", default=method.steps, min=1, max=1000,
                     tooltip=why or f"Number of steps. More steps reconstruct better. Paper: {method.steps}."),
        io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default=method.scheduler,
                       tooltip=f"ComfyUI's schedule. {which}"),
    ]


def sigmas_input():
    return io.Sigmas.Input("sigmas", optional=True,
                           tooltip="Your own schedule, descending to 0. It replaces steps and scheduler.")


def inversion_outputs(own_reverse=False):
    """INVERSION, noise and SIGMAS. With `own_reverse` only the method's own sampler returns the picture."""
    use = ("Only Replay Inversion returns the picture from it." if own_reverse else
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
                       tooltip=f"Strength of the concept guidance. Paper: {scale:g} (3 to 15)."),
        io.Float.Input("warmup", default=warmup, min=0.0, max=1.0, step=0.01,
                       tooltip="Share of the schedule before the concept acts. Higher keeps more composition. "
                               f"Paper: {warmup:g}."),
        io.Float.Input("cooldown", default=1.0, min=0.0, max=1.0, step=0.01,
                       tooltip="Share of the schedule at which the concept stops. Paper: 1 (never)."),
        io.Float.Input("threshold", default=threshold, min=0.0, max=0.999, step=0.005,
                       tooltip="Share of the latent left unchanged, where the concept acts least. "
                               f"Paper: {threshold:g}. Whole scenes: 0.75. Small objects: 0.99."),
    ]


def learning_inputs(method: Method, why):
    """MODEL, INVERSION, negative prompt and length of learning: the first inputs of every node that learns."""
    return [
        io.Model.Input("model", tooltip="The MODEL of the inversion, without editors."),
        InversionType.Input("inversion", tooltip="The trajectory to follow, from DDIM Invert, Fixed-Point Invert or "
                                                 "ReNoise Invert."),
        io.Conditioning.Input("negative", tooltip="The negative prompt you will sample with. Paper: empty."),
        io.Float.Input("cfg", default=method.cfg, min=1.1, max=100.0, step=0.1,
                       tooltip="The CFG you will sample at. The picture returns at this CFG. Not the paper's value."),
        setting_input(method, "iterations", tooltip=f"Maximum updates per step, three model passes each. {why}"),
        setting_input(method, "tolerance", step=1e-6, round=1e-7, tooltip=(
            "A step ends when its mean squared error to the inversion is below this. The limit grows by twice this "
            "every fiftieth of the schedule. Higher is faster. Null-text inversion: 1e-5.")),
    ]
