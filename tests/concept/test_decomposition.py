"""Concept Decomposition: two steps of both words against diffusers' network, and the node."""
import math

import pytest
import torch
from palimpsest.bench import twin
from palimpsest.editing.learning import learn_concept
from palimpsest.nodes.concept.decomposition import PalimpsestDecomposition
from palimpsest.nodes.concept.learn import PalimpsestLearnConcept

import tiny
from concepts import images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

SEED, NAMES = 4, ("my-idea-1", "my-idea-2")


def node(skew=0.5, more=None):
    return PalimpsestDecomposition.execute("my-idea", "object", 1e-2, skew, more).result


def test_two_steps_are_the_loss_of_both_words_in_one_prompt():
    """Levels by the authors' law; the second step has words that differ from each other."""
    model, clip = tiny.sd15(), tiny.clip()
    given, (trained, (objective,)) = images(model, ("a photo of *",)), node()
    one, two = (learn_concept(model, clip, given, trained, steps=n, seed=SEED, objective=objective) for n in (1, 2))
    generator, law = torch.Generator().manual_seed(SEED), torch.tensor(
        [1 / 1000 * (1 - 0.5 * math.cos(math.pi * t / 1000)) for t in range(1000)])
    row, place = clip.tokenize("a photo of object object")["l"][0], clip.tokenize("object")["l"][0][1][0]
    words, losses = [one.words[name]["clip_l"][0] for name in NAMES], []
    held = [place, place]
    with torch.inference_mode(False), torch.no_grad():
        unet, clean = twin.unet(model), model.model.process_latent_in(given.examples[0].latent.clone())[None]
        for vectors in (held, words):
            left = iter(vectors)
            text = clip.encode_from_tokens({"l": [[(next(left), w) if token == place else (token, w)
                                                   for token, w in row]]}).clone()
            torch.randint(1, (1,), generator=generator)
            t = int(torch.multinomial(law, 1, generator=generator))
            noise = torch.randn(clean.shape, generator=generator)
            sigma = model.model.model_sampling.sigmas[t].clone()
            found = unet((clean + sigma * noise) / (1 + sigma ** 2) ** 0.5, t, text).sample
            losses.append(float((found - noise).square().mean()))
    assert two.losses == pytest.approx(losses, rel=1e-4)
    assert relative(*words) > 1e-3


def test_the_node_learns_both_and_its_clip_knows_each():
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    _, c, concept, *_ = PalimpsestLearnConcept.execute(model, clip, images(model), *node()[:1], 1, 1, 0,
                                                      node()[1]).result
    assert tuple(concept.words) == NAMES
    assert all(torch.is_tensor(c.tokenize(f"embedding:{name}")["l"][0][1][0]) for name in NAMES)


def test_captions_need_the_place_of_both():
    model, clip, (trained, (objective,)) = tiny.sd15(), tiny.clip(), node()
    with pytest.raises(ValueError, match="captions have no"):
        learn_concept(model, clip, images(model, ("a dog",)), trained, objective=objective)
    with pytest.raises(ValueError, match="2 new words"):
        learn_concept(model, clip, images(model), trained)
