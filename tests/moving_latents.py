"""Attend-and-Excite and cross-attention guidance as their nodes make them, beside diffusers' pipelines."""
import torch
from diffusers import DDIMScheduler
from palimpsest.bench import twin
from palimpsest.nodes.guidance.attend_excite import PalimpsestAttendExcite
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance

import tiny
from runs import Case, kept

STEPS, CFG = 10, 7.5
CATS, DOGS = "a cat on a mat\na sleeping cat", "a dog on a mat\nmy dog\na dog, asleep"


@kept
def case(**kwargs):
    return Case(**{"steps": STEPS, **kwargs})


def excite(model, words="cat, mat", scale=20.0, end=0.5, thresholds="0: 0.05, 0.2: 0.5, 0.4: 0.8", refinements=20):
    return PalimpsestAttendExcite.execute(model, words, scale, end, thresholds, refinements, 0.25).result[0]


def pull(model, inversion, amount=0.1, start=0.0, end=1.0):
    return PalimpsestCrossAttentionGuidance.execute(model, inversion, amount, start, end).result[0]


@kept
def noise():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@kept
def model():
    return tiny.sd15(output=0.6)


def pipeline(kind, prompts, **parts):
    made = kind(vae=None, text_encoder=prompts, tokenizer=prompts, unet=twin.unet(model()), safety_checker=None,
                feature_extractor=None,
                scheduler=DDIMScheduler(**twin.SCHEDULE, clip_sample=False, set_alpha_to_one=True),
                requires_safety_checker=False,
                **parts)
    made.set_progress_bar_config(disable=True)
    return made


def host_run(edited, positive, **kwargs):
    """The last latent of a run from `noise`, in sampler space."""
    c, sigmas = case(), case().sigmas
    start = model().model.process_latent_out(noise() * (1 + sigmas[0] ** 2).sqrt())
    return model().model.process_latent_in(c.sample(edited, positive, CFG, latent=start, sigmas=sigmas, **kwargs))
