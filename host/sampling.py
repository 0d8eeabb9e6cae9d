"""Running solvers of k-diffusion's signature through the host's guider, and telling models apart.

The host's own SAMPLER scales noise and latent at both ends. On flow models that discards the latent at σ = 1 and
divides by zero where an inversion ends there, so `Solver` does neither: latents go in and come out in sampler space.
"""
import hashlib
import inspect
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling as parametrisation
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.k_diffusion.sampling import sample_euler
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .canvas import log, retract_warnings
from .keys import KEY, running
from .weights import matrices, numbers, unpatched

TOLERANCE = 1e-4  # relative: two σ this near are the same level
HASHED = 65536  # bytes of weights in a fingerprint
# the host's names for the width of the prompt's embedding, and for that of the vector made of the pooled one
WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim", "text_dim", "in_features"), ("adm_in_channels", "vec_in_dim")


@dataclass(frozen=True)
class Fingerprint:
    """The model an inversion was made with, in plain values."""
    model: str          # the host's model class
    latent_format: str
    channels: int
    prediction: str     # "eps", "v", "x0", "edm" or "flow"
    weights: str        # sha256 of 64 KB of unpatched weights
    sigma_data: float = 1.0             # the data's deviation that the model's input is scaled for
    context_width: int | None = None    # of the prompt's embedding; None: not known, and so not compared
    pooled_width: int | None = None     # of the vector made of the pooled embedding


class Solver(comfy.samplers.Sampler):
    """Runs `function(model, x, sigmas, extra_args=, callback=, disable=, **extra_options)` from the LATENT as it is.

    No noise is added and nothing is scaled, whatever noise the sampler node offers.

    function: Euler's steps, where none is given.
    inversion: the one whose own steps it takes, or that it reads.
    coupled: whether it holds two latents; then the function takes `announce` too, and calls it with its CoupledState
    (inversion/grid.py) before each call of the network.
    """

    def __init__(self, function=sample_euler, extra_options=None, inversion=None, coupled=False):
        self.function, self.extra_options = function, dict(extra_options or {})
        self.inversion, self.coupled = inversion, coupled

    @classmethod
    def of(cls, sampler):
        """The same solver as a host SAMPLER's, without its scalings."""
        if isinstance(sampler, cls):
            return sampler
        if not isinstance(sampler, comfy.samplers.KSAMPLER):
            raise ValueError(f"The SAMPLER is a {type(sampler).__name__}, Replay runs the solver of a KSAMPLER only: "
                             "connect KSamplerSelect (euler), or leave the input empty.")
        return cls(sampler.sampler_function, sampler.extra_options)

    @property
    def adds_noise(self) -> bool:
        """Whether the function draws noise between its steps (ancestral, SDE, LCM, churn), judged by its parameters."""
        defaults = {name: p.default for name, p in inspect.signature(self.function).parameters.items()}
        values = defaults | self.extra_options
        if values.get("s_noise") == 0:
            return False
        if "eta" in values:
            return values["eta"] > 0
        # res_multistep takes a noise sampler for its ancestral sibling only
        draws = "noise_sampler" in values and not self.function.__name__.startswith("sample_res_multistep")
        return draws or values.get("s_churn", 0) > 0

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        if len(sigmas) < 2:  # no step, though a method's own solver may have something to look up at each level
            return latent_image
        if denoise_mask is not None:
            raise ValueError("The LATENT carries a noise_mask, and this SAMPLER adds no noise to mask: remove Set "
                             "Latent Noise Mask; Latent Blend (Inversion) on the MODEL keeps what lies outside a mask.")
        if latent_image is None or not latent_image.count_nonzero():
            raise ValueError("The LATENT is empty (all zeros) and this SAMPLER adds no noise: connect Replay's LATENT.")
        extra_args["denoise_mask"] = None
        model: Any = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        total = len(sigmas) - 1

        def step(state):
            if callback is not None:
                callback(state["i"], state["denoised"], state["x"], total)

        edited = running(extra_args["model_options"]) if self.coupled else None
        announced = {"announce": edited.couple} if edited else {}
        return self.function(model, latent_image, sigmas, extra_args=extra_args, callback=step, disable=disable_pbar,
                             **announced, **self.extra_options)


def adds_noise(sampler) -> bool:
    """Whether a SAMPLER is known to draw noise between its steps."""
    return isinstance(sampler, (Solver, comfy.samplers.KSAMPLER)) and Solver.of(sampler).adds_noise


def sample(model, conditioning, latent: Tensor, sigmas: Tensor, solver, cfg=1.0, negative=None, callback=None,
           seed=0) -> Tensor:
    """Run `solver` on `latent` (model space, [B,C,…]) through the host's guider, with its progress bar and preview.

    callback(step, x0, x, steps) is called too. Returns float32 in model space, on the model's device.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning, **({} if negative is None else {"negative": negative})})
    guider.set_cfg(cfg)
    return sample_with(guider, latent, sigmas, solver, callback, seed)


def sample_with(guider, latent: Tensor, sigmas: Tensor, solver, callback=None, seed=0) -> Tensor:
    """The same on a guider of one's own."""
    preview = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)

    def step(*state):
        preview(*state)
        if callback is not None:
            callback(*state)

    return guider.sample(torch.zeros_like(latent), latent, solver, sigmas, callback=step, seed=seed,
                         disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED)


def latent_of(model, samples: Tensor) -> Tensor:
    """[B,C,…] of a LATENT, with the MODEL's channels and dimensions where it is an empty one."""
    return comfy.sample.fix_empty_latent_channels(model, samples)


def handed_on(latent: Tensor) -> Tensor:
    """A latent on the device where the host keeps what nodes hand on."""
    return latent.to(comfy.model_management.intermediate_device())


def rows_counted(model) -> list:
    """The rows that the network of this MODEL, a clone, will see: each forward's, and twice as many for a backward."""
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        out = executor(x, *args, **kwargs)
        if out.requires_grad:
            out.register_hook(lambda grad: rows.append(2 * len(x)))
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "palimpsest.count", count)
    return rows


def schedule(model, scheduler: str, steps: int) -> Tensor:
    """SIGMAS [steps+1] of one of the host's schedulers."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).float().cpu()


def split_at(model, sigmas: Tensor, percent: float) -> int:
    """The index of the first σ at or under the host's percent of the full schedule."""
    limit = float(model.get_model_object("model_sampling").percent_to_sigma(percent)) * (1 + TOLERANCE)
    return next(i for i, sigma in enumerate(sigmas.tolist()) if sigma <= limit)


def prediction_type(model) -> str:
    """"eps", "v", "x0", "edm" (all of x = x0 + σ·ε) or "flow"; ValueError for a parametrisation in which an inversion's
    step is not known."""
    sampling = model.get_model_object("model_sampling")
    # before the kinds that they are subclasses of; not every host has all
    kinds = {"IMG_TO_IMG_FLOW": "", "IMG_TO_IMG": "", "EDM": "edm", "X0": "x0", "V_PREDICTION": "v", "EPS": "eps",
             "CONST": "flow"}
    found = next((name for kind, name in kinds.items() if isinstance(sampling, getattr(parametrisation, kind, ()))), "")
    if found:
        return found
    strange = next((c.__name__ for c in type(sampling).__mro__ if c.__module__ == parametrisation.__name__
                    and not issubclass(c, torch.nn.Module)), type(sampling).__name__)
    raise ValueError(f"The {type(model.model).__name__} MODEL predicts by {strange}; inversion is known for eps, v, "
                     "x0, EDM and flow prediction (SD1.x, SD2.x, SDXL, SD3, Flux and their kin): load one of these.")


def fingerprint(model) -> Fingerprint:
    """What tells this MODEL from another, whatever LoRA lies on it."""
    latents, config = model.get_model_object("latent_format"), model.model.model_config.unet_config
    config = {**config, **config.get("context_embedder_config", {}).get("params", {})}
    context, pooled = (next((config[key] for key in keys if isinstance(config.get(key), int)), None) for keys in WIDTHS)
    data = float(getattr(model.get_model_object("model_sampling"), "sigma_data", 1.0))
    return Fingerprint(type(model.model).__name__, type(latents).__name__, latents.latent_channels,
                       prediction_type(model), _hash_weights(model), data, context, pooled)


def _hash_weights(model) -> str:
    """sha256 of the start of three weights (first, middle and last by name), as they are before any patch."""
    names, digest = matrices(model), hashlib.sha256()
    for name in (names[0], names[len(names) // 2], names[-1]):
        weight = numbers(unpatched(model, name)).detach().flatten()
        count = HASHED // 3 // weight.element_size()
        digest.update(weight[:count].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest(embeddings) -> str:
    """What tells a prompt from another: sha256 of the embeddings of its entries."""
    found = hashlib.sha256()
    for embedding in filter(torch.is_tensor, embeddings):
        found.update(embedding.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_family(model, made, what="INVERSION", again="invert"):
    """ValueError where a MODEL is of another family than what was made with one; a warning where it is of another
    checkpoint."""
    retract_warnings()
    mine, theirs = fingerprint(model), made.fingerprint
    for name in ("model", "latent_format", "channels", "prediction", "sigma_data", "context_width", "pooled_width"):
        a, b = getattr(mine, name), getattr(theirs, name)
        if a != b and None not in (a, b):
            raise ValueError(f"The {what} was made on another family of model: its {name.replace('_', ' ')} is {b}, "
                             f"this MODEL's is {a}. Connect the MODEL it was made with, or {again} again with this "
                             "one.")
    if mine.weights != theirs.weights:
        log.warning("The %s was made with another checkpoint of the same family: it works, but gives its pictures back "
                    "less exactly.", what)


def patches(model) -> tuple:
    """What other nodes changed on a MODEL, by name."""
    options = model.model_options["transformer_options"]
    weights = [f"{len(model.patches)} patched weights"] if model.patches else []
    functions = [k for k in model.model_options if k != "transformer_options"]
    blocks = [*options.get("patches", {}), *options.get("patches_replace", {})]
    wrapped = [key for kinds in model.wrappers.values() for key, found in kinds.items() if key and found]
    return tuple(map(str, (*weights, *functions, *blocks, *wrapped, *model.object_patches)))


def guidance_functions(model) -> list[str]:
    """The host's slots in which other nodes changed how a MODEL's predictions are guided."""
    return [name for name in model.model_options if name.startswith("sampler_")]


def rows_may_mix(model, conditioning) -> bool:
    """Whether rows of different σ may share a forward. Neither conditioning nor model may then
    read one σ for the batch."""
    options = model.model_options
    foreign = {*options, *options["transformer_options"]} - {"transformer_options", KEY}
    wrapped = {key for kinds in (model.wrappers, model.callbacks) for keys in kinds.values()
               for key, found in keys.items() if found}
    bound = {"start_percent", "end_percent", "timestep_start", "timestep_end", "control", "gligen", "hooks"}
    return not (foreign or wrapped - {KEY} or bound & {k for _, extras in conditioning for k in extras})
