"""Lego: the context loss beside the picture's, on the concept's word alone, and what the node needs."""
import math

import pytest
import torch
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.learning import learn_concept
from palimpsest.host.concept_files import vectors_of
from palimpsest.nodes.concept.lego import PalimpsestLego

import tiny
from concepts import images
from node_execution import executor  # noqa: F401  runs every test as the host does

CAPTIONS = "a photo of embedding:my-cat", "a photo of embedding:my-cat embedding:my-state"
WORDS = [TextualInversion("my-cat", "cat", 1, 1e-2), TextualInversion("my-state", "frozen solid", 2, 1e-2)]


def node(**kwargs):
    return PalimpsestLego.execute(**{"name": "my-state", "near": "frozen ice", "far": "warm", "weight": 0.5,
                                     "temperature": 0.07} | kwargs).result[0][0]


def test_the_first_step_adds_the_context_loss_of_the_concepts_vectors():
    """Once a step, whichever pictures it draws."""
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTIONS)
    found, plain = (learn_concept(model, clip, given, WORDS, steps=1, batch=3, objective=objective).losses[0]
                    for objective in (node(), None))
    V, P, N = (torch.nn.functional.normalize(vectors_of(clip, text)["clip_l"], dim=1)
               for text in ("frozen solid", "frozen ice", "warm"))
    contexts = []
    for v in V:
        near, far = (sum(math.exp(float(v @ word) / 0.07) for word in words) for words in (P, N))
        contexts.append(-math.log(near / (near + far)))
    assert found - plain == pytest.approx(0.5 * sum(contexts) / 2, rel=1e-3) and found - plain > 1e-3


def test_the_subjects_word_learns_from_the_pictures_alone():
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTIONS[:1] * 2 + CAPTIONS[1:])
    concept, plain = (learn_concept(model, clip, given, WORDS, steps=1, objective=objective).words
                      for objective in (node(weight=1e3), None))
    assert torch.equal(concept["my-cat"]["clip_l"], plain["my-cat"]["clip_l"])
    assert not torch.equal(concept["my-state"]["clip_l"], plain["my-state"]["clip_l"])


def test_lists_with_commas_are_the_words_alone():
    assert node(near="frozen, icy", far=" melted,warm ") == node(near="frozen icy", far="melted warm")


def test_what_it_needs_is_told():
    model, clip = tiny.sd15(), tiny.clip()
    for settings, said in ((dict(name="my-stat"), "what learns are the words my-cat, my-state: connect New Word"),
                           (dict(near=""), "towards 'no words' and away from 'warm'")):
        with pytest.raises(ValueError, match=said):
            learn_concept(model, clip, images(model, CAPTIONS), WORDS, objective=node(**settings))
