"""DreamArtist: a step against the authors' guided loss on diffusers' network, and its node."""
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import Prior
from palimpsest.editing.learning import learn_concept
from palimpsest.nodes.concept.dreamartist import PalimpsestDreamArtist
from palimpsest.nodes.concept.learn import PalimpsestLearnConcept

import tiny
from concepts import EVERY, clip_of, drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

SEED, SCALE = 4, 3.0


def node(like="cat", vectors=1, negative=1, more=None):
    return PalimpsestDreamArtist.execute("thing", like, vectors, negative, 1e-2, SCALE, more).result


def test_two_steps_equal_the_authors_program():
    """The loss of the guided prediction; the second step has words that differ."""
    model, clip = tiny.sd15(), tiny.clip()
    given, (trained, (objective,)) = images(model, ("a photo of *",)), node()
    one, two = (learn_concept(model, clip, given, trained, steps=n, seed=SEED, objective=objective) for n in (1, 2))
    generator = torch.Generator().manual_seed(SEED)
    levels = [drawn(model, 1, 1, generator)[0][1:] for _ in range(2)]
    told = clip.clone()
    plain = tiny.encode(clip, "a photo of cat")[0][0].clone()
    spelled = [clip.tokenize("a photo of cat")["l"][0] for _ in range(2)]
    place = clip.tokenize("cat")["l"][0][1][0]
    contexts = []
    for name, tokens in zip(("thing-neg", "thing"), spelled):
        row = [(one.words[name]["clip_l"][0], w) if token == place else (token, w) for token, w in tokens]
        contexts.append(told.encode_from_tokens({"l": [row]}).clone())
    losses = []
    with torch.inference_mode(False), torch.no_grad():
        unet, clean = twin.unet(model), model.model.process_latent_in(given.examples[0].latent.clone())[None]
        for (level, noise), both in zip(levels, ([plain, plain], contexts)):
            sigma, noise = model.model.model_sampling.sigmas[level].clone(), noise.clone()
            x_noisy = ((clean + sigma * noise) / (1 + sigma ** 2) ** 0.5).repeat(2, 1, 1, 1)
            e_t_uncond, e_t = unet(x_noisy, level, torch.cat([c.clone() for c in both])).sample.chunk(2)
            model_output = e_t_uncond + SCALE * (e_t - e_t_uncond)
            losses.append(float((model_output - noise).square().mean()))
    assert one.words.keys() == {"thing", "thing-neg"}
    assert relative(one.words["thing"]["clip_l"], one.words["thing-neg"]["clip_l"]) > 1e-3
    assert two.losses == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_both_words_learn(family):
    """Of several vectors each, which begin as a word does."""
    model, clip = EVERY[family](), clip_of(family)
    trained, objective = node("a cat", 2, 4)
    m, c, concept, losses, _ = PalimpsestLearnConcept.execute(model, clip, images(model), trained, 1, 1, 0,
                                                           objective).result
    start = learn_concept(model, clip, images(model), [TextualInversion("new", "a cat", 4, 1)], steps=0).words["new"]
    for encoder, first in start.items():
        assert relative(concept.words["thing"][encoder], first[:2]) > 1e-4
        assert relative(concept.words["thing-neg"][encoder], first) > 1e-4
    assert len(losses["loss"]) == 1 and torch.is_tensor(c.tokenize("embedding:thing-neg")["l"][0][1][0])


def test_a_word_beside_the_two_that_no_caption_has_is_refused():
    """Before them it stands where * is, and behind them nowhere."""
    model, clip, other = tiny.sd15(), tiny.clip(), TextualInversion("other", "cat", 1, 1e-2)
    for trained, (objective,), unused in ((*node(more=(other,)), "thing"), ((*node()[0], other), node()[1], "other")):
        with pytest.raises(ValueError, match=f"The new word {unused} is in none of the"):
            learn_concept(model, clip, images(model), trained, objective=objective)


def test_a_caption_needs_the_words_place_and_class_pictures_are_not_guided():
    model, clip, (trained, (objective,)) = tiny.sd15(), tiny.clip(), node()
    with pytest.raises(ValueError, match="captions have no"):
        learn_concept(model, clip, images(model, ("a dog",)), trained, objective=objective)
    prior = Prior(images(model, ("a dog",), seed=8), 1.0)
    alone, both = (learn_concept(model, clip, images(model), trained, p, steps=1, objective=objective).losses[0]
                   for p in (None, prior))
    plain = learn_concept(model, clip, images(model), trained[:1], prior, steps=1).losses[0]
    own = learn_concept(model, clip, images(model), trained[:1], steps=1).losses[0]
    assert both - alone == pytest.approx(plain - own, rel=1e-3)
