"""Diffusers' pipelines beside ours: equal weights, steps and noise. bench/speed.py times them."""
import importlib.util
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import comfy.model_management
import diffusers
import torch
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite.pipeline_stable_diffusion_attend_and_excite import (  # noqa: E501
    StableDiffusionAttendAndExcitePipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline,
)
from diffusers.pipelines.ledits_pp import LEditsPPPipelineStableDiffusion
from tqdm import tqdm

from ..editing import replay as replaying
from ..host.tokens import tokenize
from ..inversion.trajectory import Theta
from ..nodes.attention.p2p import PalimpsestAttentionInject
from ..nodes.blending.diffedit import PalimpsestDiffEditMask
from ..nodes.guidance.attend_excite import PalimpsestAttendExcite
from ..nodes.guidance.ledits import PalimpsestLEDITS
from ..nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance
from ..showcase.guidance.sega import concepts
from ..showcase.rows import output
from . import twin
from .cost import CFG, CONCEPT, DEFAULTS, Bench
from .null_text import authors, replay


def community(folder, name):
    """A module of diffusers' examples/community."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.tqdm = partial(tqdm, disable=True)
    return module


class Peers(Bench):
    """A model with its inversion, and diffusers' pipelines of the same weights."""

    def __init__(self, model, clip, size, steps, community=None, **of):
        super().__init__(model, clip, size, steps, **of)
        self.size, self.community, self.device = size, community, comfy.model_management.get_torch_device()
        concept = clip.encode_from_tokens_scheduled(clip.tokenize(CONCEPT))
        texts = {"": self.null, CONCEPT: concept, **dict(zip(self.texts, (self.source, self.target)))}
        lengths = {text: 2 + sum(len(w.positions) for w in tokenize(clip, text).words) for text in texts}
        with torch.inference_mode(False):
            self.prompts = twin.Prompts({text: c[0][0].to(self.device, copy=True) for text, c in texts.items()},
                                        lengths)
            path = zip(self.inversion.latents, self.inversion.sigmas)
            self.path = [twin.z_of(x, s).to(self.device, copy=True) for x, s in path]
        self.prompts.device, own = self.device, clip.tokenizer.clip_l.tokenizer
        self.prompts.encode, self.prompts.decode = own.encode, own.decode

    def pipeline(self, kind, scheduler=None, **parts):
        scheduler = scheduler or diffusers.DDIMScheduler(**twin.SCHEDULE, clip_sample=False, set_alpha_to_one=True)
        with torch.inference_mode(False):
            network = twin.unet(self.model, self.size).requires_grad_(False).to(self.device)
        made = kind(vae=None, text_encoder=self.prompts, tokenizer=self.prompts, safety_checker=None,
                    feature_extractor=None,
                    unet=network, scheduler=scheduler, requires_safety_checker=False, **parts)
        made.set_progress_bar_config(disable=True)
        return made

    def from_community(self, name, kind):
        return self.pipeline(getattr(community(self.community, name), kind))

    def call(self, pipeline, *args, rows=1, **settings):
        """The last z of a pipeline's run from the inversion's noise, only its last row."""
        z = self.path[0].repeat(rows, 1, 1, 1)
        settings |= {"latents": z, "output_type": "latent", "num_inference_steps": self.steps, "guidance_scale": CFG}
        return pipeline(*args, **settings).images[-1:]

    def z(self, model):
        """The last z of our run from the same noise."""
        return self.model.model.process_latent_in(self.run(model))

    def sampled(self):
        """The INVERSION whose trajectory is the source sampled with CFG, as in the peers' source branch."""
        path = []
        end = self.run(self.model, positive=self.source, callback=lambda i, x0, x, total: path.append(x.cpu()))
        return replace(self.inversion, latents=(*path, self.model.model.process_latent_in(end)))


def plain(b):
    theirs = b.pipeline(diffusers.StableDiffusionPipeline)
    return lambda: b.z(b.model), lambda: b.call(theirs, b.texts[1])


def inject(b, inversion):
    settings = {**DEFAULTS, "self_resolution": min(1.0, 16 / b.size)}  # theirs: up to 16² tokens
    return b.z(PalimpsestAttentionInject.execute(b.model, inversion, b.edit, **settings).result[0])


def prompt_to_prompt(b, known=False):
    theirs = b.from_community("pipeline_prompt2prompt", "Prompt2PromptPipeline")
    cross = (int(DEFAULTS["cross_end"] * b.steps) + 0.5) / (b.steps + 1)  # theirs is a share of one step more
    schedule = {"edit_type": "replace", "n_cross_replace": cross, "n_self_replace": DEFAULTS["self_end"]}
    source = b.sampled()
    return (lambda: inject(b, source if known else b.sampled()),
            lambda: b.call(theirs, list(b.texts), rows=2, cross_attention_kwargs=schedule))


def sega(b, count):
    theirs, ours = b.pipeline(diffusers.SemanticStableDiffusionPipeline), concepts(count)(b)
    each = {"editing_prompt": b.texts[1], "reverse_editing_direction": False, "edit_guidance_scale": 5.0,
            "edit_warmup_steps": 0,
            "edit_cooldown_steps": b.steps, "edit_threshold": 0.9, "edit_weights": 1.0}
    each = {name: [value] * count for name, value in each.items()}
    return lambda: b.z(ours), lambda: b.call(theirs, b.texts[1], edit_momentum_scale=0.1, edit_mom_beta=0.4, **each)


def ledits_pipeline(b):
    solver = diffusers.DPMSolverMultistepScheduler(**twin.SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=2)
    solver.set_timesteps(b.steps)
    return b.pipeline(LEditsPPPipelineStableDiffusion, solver)


def ledits_invert(b):
    theirs = ledits_pipeline(b)
    theirs.encode_image = lambda *args, **kwargs: (b.path[-1], None)
    blank = torch.zeros(1, 3, 8, 8)
    theirs.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda *args, **kwargs: (blank,))
    return (lambda: b.inverted("LEDITS++", source=b.null).theta["z"].tensor,
            lambda: theirs.invert(None, num_inversion_steps=b.steps, skip=0.0) and theirs.zs, None)


def ledits(b, count):
    theirs = ledits_pipeline(b)
    inversion = b.inverted("LEDITS++", source=b.null, sigmas=theirs.scheduler.sigmas)
    maps = inversion.theta["z"].tensor.clone()
    maps[-1] = 0  # diffusers drops it
    inversion = replace(inversion, theta={**inversion.theta, "z": Theta(maps, "step", "step")})
    model, *start = replaying.replay(b.model, inversion)
    for _ in range(count):
        model = output(PalimpsestLEDITS, model=model, clip=b.clip, concept=CONCEPT)
    theirs.eta, theirs.batch_size, theirs.inversion_steps = 1.0, 1, theirs.scheduler.timesteps
    with torch.inference_mode(False):
        theirs.zs, theirs.init_latents = (t.to(b.device, copy=True) for t in (
            maps, twin.z_of(inversion.latents[0], inversion.sigmas[0])))
    each = {"editing_prompt": CONCEPT, "reverse_editing_direction": False, "edit_guidance_scale": 5.0,
            "edit_warmup_steps": 0,
            "edit_cooldown_steps": b.steps, "edit_threshold": 0.9}
    each = {name: [value] * count for name, value in each.items()}
    return (lambda: b.model.model.process_latent_in(b.run(model, positive=b.null, cfg=1.0, start=start)),
            lambda: theirs(output_type="latent", **each).images)


def diffedit(b):
    theirs = b.pipeline(diffusers.StableDiffusionDiffEditPipeline,
                        inverse_scheduler=diffusers.DDIMInverseScheduler(**twin.SCHEDULE, clip_sample=False))
    theirs.vae = SimpleNamespace(dtype=torch.float32)  # the pipeline reads only this
    return theirs


def ddim_invert(b):
    theirs = diffedit(b)

    def ours():
        inversion = b.inverted("DDIM")
        return twin.z_of(inversion.latents[0], inversion.sigmas[0])

    return ours, lambda: theirs.invert(b.texts[0], b.path[-1], inpaint_strength=1.0, num_inference_steps=b.steps,
                                       guidance_scale=1.0).latents[:, 0]


def diffedit_mask(b):
    theirs = diffedit(b)
    return (lambda: b.other(PalimpsestDiffEditMask, strength=481 / 999, clamp=1.5, seed=5),
            lambda: torch.from_numpy(theirs.generate_mask(
                b.path[-1], b.texts[1], source_prompt=b.texts[0], num_maps_per_mask=10, mask_thresholding_ratio=1.5,
                generator=torch.Generator().manual_seed(5))).float())


def attend_excite(b):
    theirs, words = b.pipeline(StableDiffusionAttendAndExcitePipeline), ("star", "grass")
    tokens = b.edit.pairs[0].target
    named = [position for word in words for position in tokens.find(word).positions]
    ours = b.other(PalimpsestAttendExcite, words=", ".join(words), thresholds="")
    return lambda: b.z(ours), lambda: b.call(theirs, b.texts[1], named, thresholds={}, max_iter_to_alter=b.steps // 2,
                                             attn_res=(b.size // 4, b.size // 4))


def cross_attention_guidance(b):
    """The direction from the source's embedding to the target's makes one of the other.

    Their pipeline moves the null prompt's row by its own maps, ours moves both rows alike, so the results differ.
    """
    without = dict.fromkeys(("inverse_scheduler", "caption_generator", "caption_processor"))
    theirs = b.pipeline(StableDiffusionPix2PixZeroPipeline, **without)
    source, target = (b.prompts.embeddings[b.prompts.texts.index(text)] for text in b.texts)
    return (lambda: b.z(b.other(PalimpsestCrossAttentionGuidance, inversion=b.sampled())),
            lambda: b.call(theirs, b.texts[0], source_embeds=source, target_embeds=target), None)


def null_text(b, start, iterations=10):
    def ours():
        return b.inverted("Null-Text", start=start, negative=b.null if start == "negative" else None,
                          iterations=iterations)

    if b.community is None:
        return ours, lambda: authors(b.model, b.inversion, b.null, CFG,
                                     10), lambda found: distance(b, replayed(b, found))
    theirs = b.from_community("pipeline_null_text_inversion", "NullTextPipeline")
    theirs.num_inference_steps = b.steps
    theirs.scheduler.set_timesteps(b.steps)

    def learn():
        return theirs.null_optimization(b.path[::-1], theirs.get_context(b.texts[0]), 10, 1e-5)

    def reached(found):
        if not isinstance(found, list):
            return distance(b, replayed(b, found))
        return distance(b, theirs(b.texts[0], found, b.path[0], b.steps, guidance_scale=CFG,
                                  output_type="latent").images)

    return ours, learn, reached


def replayed(b, learned):
    return b.model.model.process_latent_in(replay(b.model, learned, b.source, b.null, CFG))


def distance(b, z):
    return float((z - b.path[-1]).norm() / b.path[-1].norm())


# name: a function of Peers that gives ours, theirs and, where they should not be equal, how far each result is off
NARROW = {
    "plain sampling with CFG": plain,
    "Prompt-to-Prompt, the source sampled too": prompt_to_prompt,
    "Prompt-to-Prompt, one edit more of a known source": partial(prompt_to_prompt, known=True),
    "SEGA, one concept": partial(sega, count=1),
    "SEGA, three concepts": partial(sega, count=3),
    "LEDITS++, the inversion": ledits_invert,
    "LEDITS++, one concept": partial(ledits, count=1),
    "LEDITS++, two concepts": partial(ledits, count=2),
    "DDIM inversion": ddim_invert,
    "DiffEdit's mask": diffedit_mask,
    "Attend-and-Excite, a move a step": attend_excite,
    "pix2pix-zero, the source sampled too": cross_attention_guidance,
}
TRAINED = {
    "Null-text, from the source prompt (default)": partial(null_text, start="source prompt"),
    "Null-text, from the null prompt": partial(null_text, start="negative"),
    "Null-text, from the source prompt, at most 2 updates, theirs 10": partial(null_text, start="source prompt",
                                                                              iterations=2),
}
