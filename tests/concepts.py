"""Small cases of learning, with a text encoder for every family, and a plain account of what a step draws."""
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from palimpsest.bench import twin
from palimpsest.editing.concepts import ConceptImages, Example
from palimpsest.editing.learning import learn_concept
from palimpsest.host.sampling import Solver, sample
from transformers import CLIPTextConfig, CLIPTextModel

import tiny

EVERY = {**tiny.UNETS, **tiny.FLOWS}


class Texts:
    """A CLIP of any family: a random embedding for each text."""

    def __init__(self):
        self.cond_stage_model, self.tokenizer = torch.nn.Module(), SimpleNamespace()

    def tokenize(self, text):
        return text

    def load_model(self):
        pass

    def clone(self):
        return self

    def add_patches(self, *args):
        return []

    def encode_from_tokens(self, text, return_pooled=True, return_dict=True):
        (embedding, extra), = tiny.cond(seed=sum(text.encode()))
        return {"cond": embedding, **extra}


def clip_of(family):
    return {"sd15": tiny.clip, "sd2": tiny.clip, "sdxl": tiny.sdxl_clip}.get(family, Texts)()


def transformers_clip(clip):
    """transformers' text encoder with the weights of an SD1.x's CLIP."""
    config = {name: value for name, value in tiny.CLIP_CONFIG.items() if name != "projection_dim"}
    made = CLIPTextModel(CLIPTextConfig(**config, bos_token_id=49406, pad_token_id=49407)).eval()
    weights = clip.cond_stage_model.clip_l.transformer.state_dict()
    # an older transformers has one module more
    named = {n if n in made.state_dict() else n.removeprefix("text_model."): v.float().clone()
             for n, v in weights.items()}
    left = made.load_state_dict(named, strict=False)
    assert not [n for n in left.missing_keys if "position_ids" not in n]
    return made


def images(model, captions=("a photo of *",), identifier="sks", seed=3, size=8):
    """Pictures of random latents."""
    latents = model.model.process_latent_out(tiny.latent(model, len(captions), size, seed))
    return ConceptImages(tuple(Example(z, text) for z, text in zip(latents.clone(), captions)), identifier)


def drawn(model, count, batch, generator):
    """(number of the picture, level, noise) of a step's rows, in the order in which they are drawn."""
    shape = tiny.latent(model).shape
    numbers = torch.randint(count, (batch,), generator=generator).tolist()
    return [(n, int(torch.randint(1000, (), generator=generator)), torch.randn(shape, generator=generator))
            for n in numbers]


def diffusers_step(model, clip, given, prior, weight, batch, seed, learns=lambda name: True, prepare=id, norm=1.0):
    """(loss, {their name: gradient}) of one step as in diffusers' train_dreambooth.py: ε, MSE, the prior's rows in the
    second half of the batch, gradients clipped. prepare: changes their network first."""
    generator = torch.Generator().manual_seed(seed)
    rows = drawn(model, len(given.examples), batch, generator)
    shown = [(given.examples[n], given.identifier, *rest) for n, *rest in rows]
    if prior:
        rows = drawn(model, len(prior.examples), batch, generator)
        shown += [(prior.examples[n], "", *rest) for n, *rest in rows]
    with torch.inference_mode(False):
        unet = twin.unet(model)
        prepare(unet)
        trained = {name: w for name, w in unet.named_parameters() if learns(name)}
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        clean = torch.stack([model.model.process_latent_in(e.latent.clone()) for e, *_ in shown])
        noise, levels = torch.cat([n for *_, n in shown]).clone(), torch.tensor([level for *_, level, _ in shown])
        texts = torch.cat([tiny.encode(clip, e.caption.replace("*", name))[0][0] for e, name, *_ in shown]).clone()
        noisy = scheduler.add_noise(clean.clone(), noise, levels)
        predicted = unet(noisy, levels, texts).sample
        mse = torch.nn.functional.mse_loss
        if prior:
            (ours, theirs), (noise, prior_noise) = predicted.chunk(2), noise.chunk(2)
            loss = mse(ours, noise) + weight * mse(theirs, prior_noise)
        else:
            loss = mse(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), norm)
    return float(loss), {name: w.grad for name, w in trained.items()}


def next_losses(model, clip, given, trained, learned, knowing, text):
    """(the loss of learning's next step, the same of a MODEL and CLIP that know the concept), of a text."""
    on = learn_concept(model, clip, given, trained, steps=1, concept=learned)
    generator = torch.Generator()
    generator.set_state(learned.state["generator"])
    (n, level, noise), = drawn(model, len(given.examples), 1, generator)
    m, c = knowing
    sigma = m.model.model_sampling.sigmas[level]
    clean = m.model.process_latent_in(given.examples[n].latent[None].clone())
    _, x0 = prediction(m, tiny.encode(c, text), clean + sigma * noise, sigma)
    return on.losses[-1], float(((x0 - clean) / sigma).square().mean())


def prediction(model, prompt, at=None, sigma=None):
    """(x, x0) at the schedule's middle on the host, or of the x `at` another σ."""
    found, sigma = [], model.model.model_sampling.sigmas[500] if sigma is None else sigma

    def look(denoise, x, sigmas, extra_args, callback, disable):
        start = x if at is None else at
        found.extend((start.clone(), denoise(start, sigmas[:1], **extra_args).clone()))
        return x

    with torch.inference_mode():
        sample(model, prompt, tiny.latent(model, seed=7), torch.stack([sigma, 0 * sigma]), Solver(look))
    return found
