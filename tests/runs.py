"""Short runs of the host on small models, for tests of editors."""
import atexit
from functools import cache

import comfy.model_management as management
import comfy.samplers
import pytest
import torch
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.host.sampling import Solver, schedule
from palimpsest.host.tokens import encode, tokenize_rows
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert

import joint
import tiny

_last = {}  # the host runs a slow garbage collection once the MODEL that it loaded last is gone
atexit.register(_last.clear)


def kept(function):
    """`cache`, emptied before the interpreter unloads the host's modules, which the MODELs
    need when they are deleted."""
    function = cache(function)
    atexit.register(function.cache_clear)
    return function


@kept
def parts(family, dtype):
    """(MODEL, CLIP) of a family, made once. No test may change them."""
    if family in joint.JOINT:
        return joint.JOINT[family](dtype=dtype), None
    with torch.inference_mode():
        return tiny.UNETS[family](dtype=dtype), (tiny.sdxl_clip if family == "sdxl" else clip)()


@kept
def clip():
    return tiny.clip()


def prompts(clip, source, *targets, mode="auto"):
    """(source CONDITIONING, target CONDITIONING, PROMPT_EDIT) from Prompt Edit.

    source: one text, or one per target.
    """
    sources, targets = tokenize_rows(clip, [source] if isinstance(source, str)
                                     else source), tokenize_rows(clip, targets)
    return encode(clip, sources), encode(clip, targets), edited(sources, targets, mode)


def edited(sources, targets, mode):
    """The PROMPT_EDIT of some Tokens."""
    return PromptEdit(tuple(align(sources[i % len(sources)], t, mode) for i, t in enumerate(targets)))


def relative(a, b):
    """|a - b| over |b|."""
    return float((a - b).norm() / b.norm())


def percent(model, sigma):
    """The share of the schedule after which levels are under σ."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    return next(p / 1000 for p in range(1001) if to_sigma(p / 1000) < sigma)


def cancelled_in(forward, model, call) -> int:
    """Cancels call() in a forward of the model. Returns the number of forwards.

    The forward is counted from 1.
    """
    forwards = []

    def interrupt(*args, **kwargs):
        forwards.append(1)
        if len(forwards) == forward:
            management.interrupt_current_processing()

    hook = model.model.diffusion_model.register_forward_hook(interrupt)
    with pytest.raises(management.InterruptProcessingException):
        call()
    hook.remove()
    return len(forwards)


def pictures(family, model, batch=1, size=8):
    """Random latents in model space."""
    if family in joint.JOINT:
        return joint.latent(family, model, batch, (size, size))
    return tiny.latent(model, batch, size)


def repeated(x, times):
    """x [B, …] a number of times in its rows."""
    return x.repeat(times, *[1] * (x.ndim - 1))


COLUMNS = 8  # of a transformer's prompts, all of one length


class Case:
    """A small model of a family, an inverted source picture with its prompt, and targets. A transformer has no text
    encoder here, but a token a word."""

    def __init__(self, family="sd15", source="a red cat on a mat", targets=("a blue cat on a mat",), batch=1, size=8,
                 steps=6,
                 mode="auto", dtype=torch.float32, latent=None):
        self.family = family
        self.model, self.clip = parts(family, dtype)
        with torch.inference_mode():
            if self.clip is None:
                sources = [source] if isinstance(source, str) else source
                self.source, self.target, self.null = (joint.worded(family, *texts, columns=COLUMNS)
                                                       for texts in (sources, targets, [""]))
                self.edit = edited(*(c[0][1]["palimpsest_tokens"] for c in (self.source, self.target)), mode)
            else:
                self.source, self.target, self.edit = prompts(self.clip, source, *targets, mode=mode)
                self.null = tiny.encode(self.clip, "")
            self.latent = pictures(family, self.model, batch, size) if latent is None else latent
            self.inversion, noise, self.sigmas = invert(self.model, self.source, self.latent, steps)
            self.noise = noise["samples"]
            apart = torch.randn(self.noise.shape, generator=torch.Generator().manual_seed(3))
            self.apart = self.noise + 0.3 * self.noise.std() * apart

    def sample(self, model=None, positive=None, cfg=7.5, sampler="euler", latent=None, sigmas=None, callback=None,
               seed=0,
               negative=None, guider=None):
        """Runs the host's guider on a MODEL from the inverted noise, or from `latent` in model
        space. Returns model space."""
        if guider is None:
            guider = comfy.samplers.CFGGuider(model or self.model)
            guider.set_conds(positive or self.target, negative or self.null)
            guider.set_cfg(cfg)
        _last[self.model] = guider.model_patcher
        x = self.noise if latent is None else latent
        sampler = Solver.of(comfy.samplers.sampler_object(sampler)) if isinstance(sampler, str) else sampler
        with torch.inference_mode():
            return guider.sample(torch.zeros_like(x), x, sampler, self.sigmas if sigmas is None else sigmas,
                                 callback=callback,
                                 disable_pbar=True, seed=seed).to(management.intermediate_device())

    def predictions(self, model, positive, cfg=1.0, **kwargs):
        """x0 of the MODEL with its rows set to the source's own latent, at every σ of the
        schedule: [S] of [B, C, h, w]."""
        found = []

        def walk(denoise, x, sigmas, extra_args, callback, disable):
            for sigma in sigmas[:-1]:
                at = self.inversion.at(float(sigma)).to(x)
                found.append(denoise(at, sigma.expand(len(at)), **extra_args).to(management.intermediate_device()))
            return x

        self.sample(model, positive, cfg, Solver(walk), **kwargs)
        return found


def prompt(case, text):
    """A CONDITIONING of an editor's own."""
    return tiny.encode(case.clip, text) if case.clip else joint.worded(case.family, text, columns=COLUMNS)


def invert(model, conditioning, latent, steps=6):
    with torch.inference_mode():
        return PalimpsestDDIMInvert.execute(model, conditioning, {"samples": latent}, steps, "ddim_uniform").result


def sigmas(model, steps):
    return schedule(model, "ddim_uniform", steps)
