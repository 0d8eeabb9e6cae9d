"""DreamBooth against diffusers: one step of its training script, with and without the prior."""
import comfy.utils
import pytest
import torch
from diffusers import DDPMScheduler
from palimpsest.bench import twin
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.editing.concepts import Prior
from palimpsest.editing.learning import learn_concept

import tiny
from concepts import drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

RATE, BATCH, SEED = 1e-3, 3, 5
CAPTIONS = "a photo of * star", "a * star at night"


def embedded(clip, text):
    return tiny.encode(clip, text)[0][0].clone()


def their_step(model, clip, given, prior, weight):
    """(loss, {their name: gradient}) of one step as in diffusers' train_dreambooth.py: ε, MSE, the prior's rows in the
    second half of the batch, gradients clipped at norm 1."""
    generator = torch.Generator().manual_seed(SEED)
    rows = drawn(model, len(given.examples), BATCH, generator)
    shown = [(given.examples[n], given.identifier, *rest) for n, *rest in rows]
    if prior:
        rows = drawn(model, len(prior.examples), BATCH, generator)
        shown += [(prior.examples[n], "", *rest) for n, *rest in rows]
    with torch.inference_mode(False):
        unet = twin.unet(model)
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        clean = torch.stack([model.model.process_latent_in(e.latent.clone()) for e, *_ in shown])
        noise, levels = torch.cat([n for *_, n in shown]).clone(), torch.tensor([level for *_, level, _ in shown])
        texts = torch.cat([embedded(clip, e.caption.replace("*", name)) for e, name, *_ in shown]).clone()
        noisy = scheduler.add_noise(clean.clone(), noise, levels)
        predicted = unet(noisy, levels, texts).sample
        mse = torch.nn.functional.mse_loss
        if prior:
            (ours, theirs), (noise, prior_noise) = predicted.chunk(2), noise.chunk(2)
            loss = mse(ours, noise) + weight * mse(theirs, prior_noise)
        else:
            loss = mse(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    return float(loss), {name: weight.grad for name, weight in unet.named_parameters()}


@pytest.mark.parametrize("weight", [None, 0.7], ids=["alone", "prior"])
def test_a_step_equals_diffusers(weight):
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTIONS)
    prior = images(model, ("a photo of a star", "a star"), seed=8) if weight else None
    learned = learn_concept(model, clip, given, [AllWeights(RATE)], Prior(prior, weight) if weight else None, steps=1,
                            batch=BATCH, seed=SEED)
    loss, gradients = their_step(model, clip, given, prior, weight)
    assert learned.losses[0] == pytest.approx(loss, rel=1e-5)
    # AdamW's first mean is a tenth of the gradient
    means = [10 * state["exp_avg"] for state in learned.state["optimiser"]["state"].values()]
    found = dict(zip(learned.weights, means, strict=True))
    pairs = []
    for theirs in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config):
        stem, _, end = theirs.rpartition(".")
        if theirs in gradients and end in ("weight", "bias"):
            name = f"lora_unet_{stem.replace('.', '_')}.{'diff' if end == 'weight' else 'diff_b'}"
            pairs.append((found.pop(name), gradients[theirs]))
    assert not found and len(pairs) > 100
    assert relative(*(torch.cat([g.flatten() for g in side]) for side in zip(*pairs))) < 1e-5
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-5


def test_a_subject_is_learned_by_one_node():
    """On the miniature, with a look at each step."""
    from palimpsest.miniature.model import load_miniature
    from palimpsest.nodes.concept.dreambooth import PalimpsestLearnSubject
    from palimpsest.nodes.miniature import PalimpsestMiniatureSubject

    import nodes
    model, clip, vae = load_miniature()
    pictures, _, noun, _ = PalimpsestMiniatureSubject.execute(0, 2).result
    m, c, concept, looks = PalimpsestLearnSubject.execute(
        model, clip, vae, pictures, noun, "sks", 4, 2e-3, 4, 1, 2, 3.0, 9.0, 0).result
    assert len(looks) == len(concept.looks) >= 1 and looks.shape[1:] == (128, 128, 3)
    assert concept.weights and concept.notes["captions"] == ["a photo of a * star"] * 2
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    drawn = []
    for told in ((m, c), (model, clip)):
        prompt, null = (tiny.encode(told[1], text) for text in ("a photo of a sks star", ""))
        sampled, = nodes.common_ksampler(told[0], 0, 2, 3.0, "ddim", "ddim_uniform", prompt, null, empty)
        drawn.append(sampled["samples"])
    assert concept.notes["kept"] == 0 or relative(*drawn) > 1e-4
