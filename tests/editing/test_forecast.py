"""What a step of learning needs, and blocks that are computed twice to need less."""
import pytest
import torch
from palimpsest.concept.dco import DCO
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.concept.neti import NeuralSpaceTime
from palimpsest.concept.reversion import Steering
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing import forecast
from palimpsest.editing.concepts import ConceptImages, Prior
from palimpsest.editing.learning import learn_concept
from palimpsest.editing.watching import Watch
from palimpsest.host.memory import counting
from palimpsest.host.recomputing import _Body, blocks
from palimpsest.host.saved import MADE
from palimpsest.miniature.model import load_miniature

import tiny
from concepts import EVERY, clip_of, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative


def gradients(learned):
    """All of a first step's, from AdamW's first means."""
    return torch.cat([10 * state["exp_avg"].flatten() for state in learned.state["optimiser"]["state"].values()])


TRAINED = {"all": [AllWeights(1e-3)], "lora": [LoRA(1e-3, layers="all", text_encoder=True)],
           "word": [TextualInversion("thing", "dog", 1, 1e-3)]}


@pytest.mark.parametrize("family, trained", [*((family, "all") for family in EVERY), ("sd15", "lora"), ("sd15", "word"),
                                             ("sdxl", "lora")])
def test_blocks_that_are_computed_twice_have_the_same_gradients(family, trained):
    model, clip, trained = EVERY[family](), clip_of(family), TRAINED[trained]
    given = images(model)
    once, twice = (learn_concept(model, clip, given, trained, steps=1, recompute=r) for r in (False, True))
    assert twice.losses == pytest.approx(once.losses, rel=1e-6)
    assert len(gradients(once)) and relative(gradients(twice), gradients(once)) < 1e-5
    assert not any("forward" in vars(module) for module in model.model.diffusion_model.modules())


def test_all_blocks_but_the_last_run_again_in_the_backward_pass(monkeypatch):
    model, runs = tiny.sd15(), []
    named, run = {block: name for name, block in blocks(model.model.diffusion_model).items()}, _Body.forward

    def noted(self, *args, **kwargs):
        runs.append(named[self.block])
        return run(self, *args, **kwargs)

    monkeypatch.setattr(_Body, "forward", noted)
    learn_concept(model, tiny.clip(), images(model), TRAINED["lora"], steps=1, recompute=True)
    *others, _ = named.values()
    assert len(others) > 2 and runs == [*others, *reversed(others)]


def test_changed_weights_are_made_again_in_the_backward_pass_and_not_kept():
    """What is kept is less than the weights alone would be."""
    model, clip = tiny.sd15(), tiny.clip()
    network = model.model.diffusion_model
    with counting(network) as kept:
        learned = learn_concept(model, clip, images(model), TRAINED["all"], steps=1)
    assert len(gradients(learned)) == sum(p.numel() for p in network.parameters())
    assert 0 < kept.most < sum(p.nbytes for p in network.parameters())
    assert not any("forward" in vars(module) for module in network.modules()) and not MADE


def test_a_step_says_what_it_needs_and_the_crops_say_it_of_the_whole(monkeypatch):
    """A U-Net's graph: that of the whole picture, counted, and what two crops of it foretell."""
    model, clip, _ = load_miniature()
    given, found = images(model, size=32), []
    for small in (32 * 32, 0):
        monkeypatch.setattr(forecast, "SMALL", small)
        learn_concept(model, clip, given, [LoRA(1e-3)], steps=1, told=found.append)
    counted, foretold = found
    assert foretold.step == pytest.approx(counted.step, rel=0.03)
    assert counted.seconds > 0 and "A step needs about" in str(counted)


@pytest.mark.parametrize("small", [32 * 32, 0])
def test_the_largest_picture_tells_what_a_step_needs(small, monkeypatch):
    """Of the concept or of its class, whichever it is, in any order. Sizes that differ pass one after the other."""
    monkeypatch.setattr(forecast, "SMALL", small)
    monkeypatch.setattr(forecast, "ROUNDED", 4)
    model, clip, found = tiny.sd15(), tiny.clip(), []
    large, less = (images(model, size=size) for size in (32, 16))
    for a, b in ((large, less), (less, large)):
        both = ConceptImages((*a.examples, *b.examples), "sks")
        of_class = Prior(images(model, ("a dog",), size=b.examples[0].latent.shape[-1]), 1.0)
        for given, prior in ((both, None), (a, of_class)):
            learn_concept(model, clip, given, [LoRA(1e-3)], prior, 1, told=found.append)
    first, *others = (needed.step for needed in found)
    assert others == pytest.approx([first] * 3, rel=0.02)
    learn_concept(model, clip, less, [LoRA(1e-3)], steps=1, told=found.append)
    assert found[-1].step < first / 2


def test_a_watched_run_holds_an_average_and_the_best_beside():
    model, clip, found = tiny.sd15(), tiny.clip(), []
    for watch in (None, Watch(1)):
        learned = learn_concept(model, clip, images(model), [LoRA(1e-3)], steps=1, watch=watch, told=found.append)
    plain, watched = found
    assert watched.step - plain.step == 2 * sum(value.nbytes for value in learned.state["theta"])


def test_blocks_are_computed_twice_where_memory_is_short_and_learning_is_refused_where_it_does_not_fit(monkeypatch):
    model, clip = tiny.sd15(), tiny.clip()
    found = []

    def learn(free):
        monkeypatch.setattr(forecast, "free_bytes", lambda guider, wanted: free)
        return learn_concept(model, clip, images(model), [LoRA(1e-3)], steps=1, told=found.append)

    plain = learn(2 ** 40)
    short = learn(found[0].step - 1)
    assert [f.recomputed for f in found] == [False, True] and found[1].step < 0.6 * found[0].step
    assert short.losses == pytest.approx(plain.losses, rel=1e-6)
    with pytest.raises(ValueError, match="GB are free: take smaller pictures"):
        learn(1000)


def test_a_forecast_changes_nothing_of_what_is_learned():
    """Not where a loss draws anew, as this word's dropout in its contrast does."""
    model, clip = tiny.sd15(), tiny.clip()
    given, word = images(model, ("cat * stone",)), NeuralSpaceTime("thing", "cat", 1, 1e-3)
    plain, foretold = (learn_concept(model, clip, given, [word], steps=2, objective=Steering(), told=told)
                       for told in (None, lambda forecast: None))
    assert plain.losses == foretold.losses


@pytest.mark.parametrize("prior, objective, passes", [(None, None, 1), (False, None, 1), (True, None, 3),
                                                      (None, DCO(), 2), (True, DCO(), 4)])
def test_passes_of_the_frozen_model_are_foretold(prior, objective, passes):
    """What the prior keeps to and what an objective compares with take a forward more. Rows share the others."""
    model, clip, given, seen = tiny.sd15(), tiny.clip(), images(tiny.sd15(), ("a * dog",)), []
    others = None if prior is None else Prior(images(model, ("a dog",), seed=8), 1.0, prior)
    hook = model.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
    found = []
    learn_concept(model, clip, given, [LoRA(1e-3)], others, steps=0, objective=objective,
                  told=lambda forecast: found.append(len(seen)))
    hook.remove()
    assert found == [passes]
