"""Checkpoints that the host holds as quantised tensors, which are most of the large ones that it offers."""
import copy

import pytest
import torch
from palimpsest.concept.custom_diffusion import KeysAndValues
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.editing.deltas import regrown
from palimpsest.editing.inverting import invert
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.host.hooks import with_weights_on

import runs
import tiny
from concepts import EVERY, clip_of, images, prediction
from editors import EDITORS, GUIDED, STEPS
from every import INVERSIONS
from node_execution import executor  # noqa: F401  runs every test as the host does
from quantised import of_float8
from runs import Case, kept, relative

GRADIENTS = ["excite", "guide", "remove"]
LEARNED = ["KV", "Null-Text", "Prompt Tuning", "StyleDiffusion"]


@kept
def both(family):
    """(a quantised MODEL, a plain one of the same numbers)"""
    return of_float8(EVERY[family]())


@pytest.fixture
def cases(monkeypatch):
    """The same case on both."""
    clip, found = tiny.clip(), []
    for model in both("sd15"):
        monkeypatch.setattr(runs, "parts", lambda family, dtype, model=model: (model, clip))
        found.append(Case(steps=STEPS))
    return found


@pytest.mark.parametrize("name", ["swap", "mutual", *GRADIENTS])
def test_an_editor_does_what_it_does_on_the_numbers_themselves(name, cases):
    quantised, plain = (case.sample({**EDITORS, **GUIDED}[name](case)) for case in cases)
    assert relative(quantised, plain) < 1e-5
    assert relative(plain, cases[1].sample()) > 1e-3


@pytest.mark.parametrize("name", LEARNED)
def test_an_inversion_learns_what_it_learns_on_the_numbers_themselves(name, cases):
    quantised, plain = (INVERSIONS[name](case) for case in cases)
    assert plain.theta.keys() == quantised.theta.keys()
    assert all(relative(quantised.theta[n].tensor, theta.tensor) < 1e-5 for n, theta in plain.theta.items())


def test_a_flow_model_is_inverted_as_its_numbers_are():
    inverted = [invert("DDIM", model, tiny.cond(), {"samples": tiny.latent(model)}, 3, "simple").inversion
                for model in both("flux")]
    assert relative(inverted[0].path[0], inverted[1].path[0]) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_a_lora_learns_what_it_learns_on_the_numbers_themselves(family, recompute):
    """And stands beside the weights as in training, where the sum would be rounded as they are."""
    models, clip, prompt = of_float8(EVERY[family]()), clip_of(family), tiny.cond(seed=5)
    before = [copy.deepcopy(prediction(model, prompt)[1]) for model in models]
    quantised, plain = (learn_concept(model, clip, images(model), [LoRA(1e-2, layers="all")], steps=3,
                                      recompute=recompute) for model in models)
    assert plain.weights.keys() == quantised.weights.keys()
    assert all(relative(v, plain.weights[n]) < 1e-5 for n, v in quantised.weights.items() if plain.weights[n].any())
    served, wanted = (prediction(applied(model, clip, concept)[0], prompt)[1]
                      for model, concept in zip(models, (quantised, plain)))
    assert relative(served, wanted) < 1e-5 and relative(before[0], wanted) > 1e-3
    assert torch.equal(prediction(applied(models[0], clip, quantised, 0.0)[0], prompt)[1], before[0])
    assert torch.equal(prediction(models[0], prompt)[1], before[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_go_past_a_lora_that_stands_beside_the_weights(recompute):
    """Its tensors are not the network's, and a loader made them."""
    models, clip = both("sd15"), tiny.clip()
    learned = learn_concept(models[1], clip, images(models[1]), [LoRA(1e-2, layers="all")], steps=2)
    found, wanted = (learn_concept(applied(model, clip, learned)[0], clip, images(model, seed=8), [LoRA(1e-2)], steps=2,
                                   recompute=recompute).losses for model in models)
    assert found == pytest.approx(wanted, rel=1e-5)
    bare = learn_concept(models[1], clip, images(models[1], seed=8), [LoRA(1e-2)], steps=2).losses
    assert abs(bare[0] / wanted[0] - 1) > 1e-3


def test_where_the_card_multiplies_in_8_bits_learning_does_not():
    """The host's kernels for it round what goes into a layer, and no gradient knows of that."""
    (model, plain), clip, prompt = of_float8(EVERY["flux"]()), clip_of("flux"), tiny.cond(seed=5)
    exact, layers = prediction(model, prompt)[1], [*model.model.diffusion_model.modules()]
    for layer in layers:
        if hasattr(layer, "_full_precision_mm"):
            layer._full_precision_mm = False
    rounded, before = prediction(model, prompt)[1], [dict(vars(layer)) for layer in layers]
    assert relative(rounded, exact) > 1e-3
    found, wanted = (learn_concept(m, clip, images(m), [LoRA(1e-2)], steps=2).losses for m in (model, plain))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert torch.equal(prediction(model, prompt)[1], rounded)
    assert [vars(layer).keys() for layer in layers] == [held.keys() for held in before]


def test_a_model_that_learned_before_it_was_loaded_can_be_moved():
    """The host moves a quantised weight again in the mode alone in which it moved it first."""
    model, _ = of_float8(EVERY["sd15"]())
    clip = tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-2)], steps=1)
    twice = applied(applied(model, clip, learned)[0], clip, learned)[0]  # the second is added to the weights
    prompt = tiny.encode(clip, "a photo")
    assert relative(prediction(twice, prompt)[1], prediction(model, prompt)[1]) > 1e-4


def test_a_model_beside_whose_weights_the_concept_stands_is_known():
    model, clip = both("sd15")[0], tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-2)], steps=2)
    with pytest.raises(ValueError, match="has the .* weights of the CONCEPT on it"):
        learn_concept(applied(model, clip, learned)[0], clip, images(model), [LoRA(1e-2)], steps=2, concept=learned)


def test_a_lora_on_one_prompt_is_refused_before_the_host_stops_at_it(cases):
    case, prompts = cases[0], tiny.encode(tiny.clip(), "a photo of a cat")
    learned = learn_concept(case.model, tiny.clip(), images(case.model), [LoRA(1e-2)], steps=1)
    with pytest.raises(ValueError, match="cannot change the quantised weights of this MODEL"):
        case.sample(EDITORS["mutual"](case), with_weights_on(prompts, learned.weights, 1.0))


@pytest.mark.parametrize("basis", [AllWeights(1e-3), KeysAndValues(1e-3), SpectralShifts(1e-3)], ids=repr)
def test_whole_changes_of_quantised_weights_are_refused(basis):
    model = both("sd15")[0]
    with pytest.raises(ValueError, match="is QuantizedTensor of .*train LoRA Weights, or load a checkpoint of fp8"):
        learn_concept(model, tiny.clip(), images(model), [basis], steps=1)


def test_shifts_of_plain_weights_are_not_put_on_quantised_ones():
    quantised, plain = both("sd15")
    learned = learn_concept(plain, tiny.clip(), images(plain), [SpectralShifts(1e-2)], steps=1)
    with pytest.raises(ValueError, match="weights that the concept changes are quantised in this MODEL"):
        regrown(quantised, SpectralShifts(1e-2), learned.compact)
