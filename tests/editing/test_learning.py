"""Learning a concept: the loop, its draws, and what it leaves behind."""
from contextlib import contextmanager
from functools import partial

import comfy.model_management as management
import comfy.sd
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from palimpsest.concept.custom_diffusion import KeysAndValues
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.concept.p_plus import ExtendedTextualInversion
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing import learner
from palimpsest.editing.concepts import ConceptImages, Prior
from palimpsest.editing.deltas import Weights
from palimpsest.editing.learner import Learner
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.run_files import load_run, run_file
from palimpsest.editing.watching import Watch
from palimpsest.host import gradients
from palimpsest.host.concept_files import lora_names
from palimpsest.host.gradients import differentiable
from palimpsest.host.guiders import PromptGuider, prompted
from palimpsest.host.sampling import Solver, sample_with
from palimpsest.inversion.storage import write

import tiny
from concepts import EVERY, clip_of, images
from joint import TODAY
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

# the last block's text, which these networks do not read
UNREAD = {"sd3": "joint_blocks_1_context_block", "qwen": "transformer_blocks_1_",
          **({} if TODAY else {"zimage": "norm_final"})}  # there Lumina 2 takes its place
CAPTIONS = "a photo of * on grass", "a * at night"
WORD, THIN = TextualInversion("thing", "dog", 1, 1e-3), LoRA(1e-3)


def prediction(model, sigma=1.0, seed=5, prompt=None):
    """x0 of one latent, by the host's guider."""
    found = []

    def solve(denoise, x, sigmas, extra_args=None, **kwargs):
        found.append(prompted(denoise, extra_args, "any", x, sigmas[:1].to(x)))
        return x

    level = min(sigma, float(model.get_model_object("model_sampling").sigma_max))
    sample_with(PromptGuider(model, {"any": prompt or tiny.cond()}), tiny.latent(model, seed=seed),
                torch.tensor([level, 0.0]), Solver(solve))
    return found[0]


def weights(model, clip):
    return {name: value.clone() for part in (model.model, clip.cond_stage_model)
            for name, value in part.state_dict().items()}


@pytest.mark.parametrize("family", EVERY)
def test_the_loss_falls_and_every_weight_learns(family):
    """What is learned lowers the loss of the very rows that it was learned from, on every family."""
    model, clip = EVERY[family](), clip_of(family)
    given = images(model)
    learned = learn_concept(model, clip, given, [AllWeights(3e-3)], steps=6)
    again, _ = applied(model, clip, learned)
    after = learn_concept(again, clip, given, [AllWeights(1e-12)], steps=6)
    assert sum(after.losses) < 0.97 * sum(learned.losses)
    still = [name for name, value in learned.weights.items() if not value.count_nonzero()]
    assert all(UNREAD.get(family, "-") in name for name in still)


@pytest.mark.parametrize("family", EVERY)
def test_the_loss_is_the_one_that_the_family_was_trained_with(family):
    """Of what goes into the network and comes out of it: the MSE of ε, of v, or of the velocity noise - x0."""
    model, clip, seed, seen = EVERY[family](), clip_of(family), 5, []
    given, network, sampling = images(model), model.model.diffusion_model, model.model.model_sampling
    hook = network.register_forward_hook(lambda _, args, out: seen.append((args[0].detach().clone(), out.detach())))
    learned = learn_concept(model, clip, given, [AllWeights(1e-3)], steps=1, seed=seed)
    hook.remove()
    clean = model.model.process_latent_in(given.examples[0].latent[None].clone())
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (1,), generator=generator)
    if family in tiny.FLOWS:
        sigma = float(sampling.percent_to_sigma(float(torch.randn((), generator=generator).sigmoid())))
        noise = torch.randn(clean.shape, generator=generator)
        shown, wanted = (1 - sigma) * clean + sigma * noise, noise - clean
    else:
        sigma = sampling.sigmas[int(torch.randint(1000, (), generator=generator))]
        noise, alpha = torch.randn(clean.shape, generator=generator), 1 / (1 + sigma ** 2) ** 0.5
        shown = alpha * (clean + sigma * noise)
        wanted = alpha * (noise - sigma * clean) if family == "sd2" else noise
    (x, out), = seen
    assert relative(x, shown) < 1e-5
    assert learned.losses[0] == pytest.approx(float((out - wanted).square().mean()), rel=1e-4)


@pytest.mark.parametrize("dtype, large", [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("family", EVERY)
def test_weights_of_16_bits_learn(family, dtype, large, monkeypatch):
    """On every family the loss of the very rows falls, and every weight that is read learns, in fp32. Large models are
    computed in bf16."""
    if large:
        monkeypatch.setattr(gradients, "FP32", 0)
    model, clip = EVERY[family](dtype=dtype), clip_of(family)
    given = images(model)
    learned = learn_concept(model, clip, given, [AllWeights(3e-3)], steps=4)
    after = learn_concept(applied(model, clip, learned)[0], clip, given, [AllWeights(1e-12)], steps=4)
    assert sum(after.losses) < 0.98 * sum(learned.losses)
    still = [name for name, value in learned.weights.items() if not value.count_nonzero()]
    assert all(UNREAD.get(family, "-") in name for name in still)
    assert all(value.dtype == torch.float32 for value in learned.weights.values())


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("family", EVERY)
def test_weights_of_8_bits_learn_as_their_numbers_do_in_fp32(family, large, monkeypatch):
    """Nothing that learns is rounded to 8 bits. The host rounds what is put on such weights."""
    if large:
        monkeypatch.setattr(gradients, "FP32", 0)
    model, same, clip = EVERY[family](dtype=torch.float8_e4m3fn), EVERY[family](), clip_of(family)
    numbers = model.model.diffusion_model.state_dict()
    same.model.diffusion_model.load_state_dict({name: value.float() for name, value in numbers.items()})
    found, wanted = (learn_concept(m, clip, images(m), [LoRA(1e-2, layers="all")], steps=4) for m in (model, same))
    assert found.losses == pytest.approx(wanted.losses, rel=1e-2 if large else 1e-6)
    kept = [torch.cat([w.flatten() for w in concept.weights.values()]) for concept in (found, wanted)]
    assert large or relative(*kept) < 1e-3
    twice = learn_concept(model, clip, images(model), [LoRA(1e-2, layers="all")], steps=4, recompute=True)
    assert twice.losses == pytest.approx(found.losses, rel=1e-2 if large else 1e-6)
    changed, base = prediction(applied(model, clip, found)[0]), prediction(model)
    rounded = 0.5 if large or not hasattr(comfy.sd, "load_bypass_lora_for_models") else 0.01  # beside the weights
    assert relative(changed, prediction(applied(same, clip, wanted)[0])) < rounded * relative(changed, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("basis", [LoRA(1e-2, layers="all", text_encoder=True), AllWeights(1e-2, True),
                                   KeysAndValues(1e-2), SpectralShifts(1e-2)], ids=lambda basis: type(basis).__name__)
def test_what_has_not_learned_yet_changes_nothing(basis, dtype):
    model, clip = tiny.sd15(dtype=dtype), tiny.clip()
    fresh = learn_concept(model, clip, images(model), [basis], steps=0)
    m, told = applied(model, clip, fresh)
    assert m.patches and torch.equal(prediction(m), prediction(model))
    assert torch.equal(tiny.encode(told, "a dog")[0][0], tiny.encode(clip, "a dog")[0][0])


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_what_was_learned_predicts_as_in_training(family):
    """A forward with changes beside the weights equals one of the MODEL that the file is loaded on."""
    model, clip = EVERY[family](), clip_of(family)
    basis = LoRA(1e-2, alpha=2.0, layers="all")
    learned = learn_concept(model, clip, images(model), [basis], steps=3)
    inside = dict(model.model.diffusion_model.named_parameters())
    names = lora_names(model)
    deltas = {}
    for name, called in names.items():
        if name.endswith("weight") and f"{called}.lora_up.weight" in learned.weights:
            down, up = (learned.weights[f"{called}.lora_{end}.weight"].flatten(1) for end in ("down", "up"))
            deltas[name] = 2.0 / basis.rank * (up @ down).view(inside[name].shape)
    with differentiable(model, lambda: deltas) as m, torch.no_grad():
        training = prediction(m)
    served = prediction(applied(model, clip, learned)[0])
    assert len(deltas) > 4 and relative(training, served) < 1e-5
    assert relative(prediction(model), served) > 1e-3


def test_nothing_changes_at_strength_0():
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-2, text_encoder=True)], steps=2)
    none, words = applied(model, clip, learned, 0.0, 0.0)
    assert torch.equal(prediction(none), prediction(model))
    assert torch.equal(tiny.encode(words, "a photo of a dog")[0][0], tiny.encode(clip, "a photo of a dog")[0][0])
    told, heard = applied(model, clip, learned)
    assert not torch.equal(prediction(told), prediction(model))
    assert not torch.equal(tiny.encode(heard, "a photo of a dog")[0][0], tiny.encode(clip, "a photo of a dog")[0][0])


@pytest.mark.parametrize("trained, predicted", [
    ([LoRA(1e-2, text_encoder=True)], True), ([AllWeights(1e-3, True)], False), ([SpectralShifts(1e-2)], False),
    ([KeysAndValues(1e-2), TextualInversion("thing", "dog", 2, 1e-2)], True),
    ([ExtendedTextualInversion("thing", "dog", 1, 1e-2), LoRA(1e-2)], False)],
                         ids=["LoRA", "all", "spectral", "keys and a word", "layers"])
def test_going_on_is_as_not_having_stopped(trained, predicted, tmp_path):
    """With text encoder, prior and batches, bit for bit, whatever else draws numbers in between. From a file too."""
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTIONS)
    prior = Prior(images(model, ("a dog", "a cat"), seed=9), 0.7, predicted)
    learned = partial(learn_concept, model, clip, given, trained, prior, batch=2)
    whole, half = learned(2, seed=7), learned(1, seed=7)
    torch.randn(5)
    file = tmp_path / "half"
    write(file, *run_file(half))
    read = load_run(file)
    assert same(read.words, half.words) and same(read.weights, half.weights) and read.fingerprint == half.fingerprint
    assert all(same(table.vectors, half.tables[name].vectors) and table.places == half.tables[name].places
               for name, table in read.tables.items()) and read.tables.keys() == half.tables.keys()
    for on in learned(1, seed=8, concept=half), learned(1, seed=8, concept=read):
        assert on.losses == whole.losses and half.losses == whole.losses[:1]
        assert same(on.state["theta"], whole.state["theta"]) and on.weights and same(on.weights, whole.weights)


def same(ours, theirs) -> bool:
    """Whether tensors in dictionaries or lists are equal bit for bit."""
    if torch.is_tensor(ours):
        return torch.equal(ours, theirs)
    keys = ours.keys() if isinstance(ours, dict) else range(len(ours))
    return len(ours) == len(theirs) and all(same(ours[key], theirs[key]) for key in keys)


@contextmanager
def stopped(place, model, clip, patch):
    """While it lasts a run is cancelled in its second step, in the middle of a pass."""
    inside = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
    begun, step, linear = [], Learner.step, torch.nn.functional.linear
    patch.setattr(Learner, "step", lambda self: begun.append(1) or step(self))

    def stop(*args):
        backward = torch._C._current_graph_task_id() >= 0
        if len(begun) == 2 and backward == (place in ("backward", "computed again")):
            raise InterruptProcessingException

    def multiplied(x, weight, bias=None):
        if weight.shape == inside.weight.shape:
            stop()
        return linear(x, weight, bias)

    def later(module, args, out):
        out.register_hook(stop)

    encoder = clip.cond_stage_model.clip_l.transformer.text_model.encoder
    hook = (encoder.layers[0] if place == "the text encoder" else inside).register_forward_hook(
        {"a layer": lambda *args: None, "backward": later}.get(place, stop))
    if place == "a layer":
        patch.setattr(torch.nn.functional, "linear", multiplied)
    with pytest.raises(InterruptProcessingException):
        yield
    hook.remove()


@pytest.mark.parametrize("end", ["done", "failed", "a block", "a layer", "the text encoder", "backward",
                                 "computed again"])
def test_a_run_leaves_model_and_clip_as_they_were(end, monkeypatch):
    """However it ends: after its steps, by a loss that is no number, or cancelled inside a pass."""
    model, clip = tiny.sd15(), tiny.clip()
    before, first, told = weights(model, clip), prediction(model), tiny.encode(clip, "a dog")[0][0]
    trained = [AllWeights(1e-2, text_encoder=True), TextualInversion("thing", "dog", 1, 1e-2)]
    learned = partial(learn_concept, model, clip, images(model), trained, steps=3, recompute=end == "computed again")
    with monkeypatch.context() as patch:
        if end == "done":
            learned()
        elif end == "failed":
            step = Learner.step
            patch.setattr(Learner, "step", lambda self: (float("nan"), *step(self)[1:]))
            with pytest.raises(ValueError, match="no number"):
                learned()
        else:
            with stopped(end, model, clip, patch):
                learned()
    after = weights(model, clip)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(prediction(model), first) and torch.equal(tiny.encode(clip, "a dog")[0][0], told)
    assert not any(getattr(m, "weight_function", None) for m in model.model.modules())


def test_a_cancelled_run_begins_no_further_step(monkeypatch):
    """Not even a part of one, though today's host asks in each layer too."""
    model, clip, begun, step = tiny.sd15(), tiny.clip(), [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self: begun.append(1) or step(self))
    try:
        with pytest.raises(InterruptProcessingException):
            learn_concept(model, clip, images(model), [THIN], steps=3, save_every=1,
                          save=lambda part: management.interrupt_current_processing())
    finally:
        management.interrupt_current_processing(False)
    assert len(begun) == 1


def test_equal_seeds_learn_equal_bytes_and_half_the_steps_twice_are_all_of_them():
    model, clip = tiny.sd15(), tiny.clip()
    given, trained = images(model, CAPTIONS), [LoRA(1e-2), TextualInversion("thing", "dog", 1, 1e-2)]
    whole, same = (learn_concept(model, clip, given, trained, steps=4, batch=2, seed=7) for _ in range(2))
    half = learn_concept(model, clip, given, trained, steps=2, batch=2, seed=7)
    kept = [t.clone() for t in half.state["theta"]]
    on = learn_concept(model, clip, given, trained, steps=2, batch=2, seed=7, concept=half)
    other = learn_concept(model, clip, given, trained, steps=4, batch=2, seed=8)
    for found in (same, on):
        assert found.losses == whole.losses and found.weights.keys() == whole.weights.keys()
        assert found is on or found.notes == whole.notes  # which a file holds
        assert all(torch.equal(found.weights[name], whole.weights[name]) for name in whole.weights)
        assert torch.equal(found.words["thing"]["clip_l"], whole.words["thing"]["clip_l"])
    assert other.losses != whole.losses
    assert all(torch.equal(a, b) for a, b in zip(kept, half.state["theta"]))
    assert learn_concept(model, clip, given, trained, steps=2, batch=2, seed=7, concept=half).losses == whole.losses


def test_a_concept_that_was_saved_on_the_way_stays_as_it_was():
    """What it needs to go on is its own, on the CPU, and no longer the run's."""
    model, clip, parts = tiny.sd15(), tiny.clip(), []
    given, trained = images(model), [LoRA(1e-2)]
    learn_concept(model, clip, given, trained, steps=4, save_every=2, save=parts.append)
    half = learn_concept(model, clip, given, trained, steps=2)
    for one, other in zip(*(concept.state["optimiser"]["state"].values() for concept in (parts[0], half)), strict=True):
        assert one["exp_avg"].device.type == "cpu" and torch.equal(one["exp_avg"], other["exp_avg"])
        assert torch.equal(one["step"], other["step"])


def test_a_prior_by_predictions_asks_nothing_at_first_and_then_what_the_frozen_model_says():
    """Of a class picture without noise to guess, the loss is the distance of the two models alone."""
    model, clip = tiny.sd15(), tiny.clip()
    given, others = images(model), images(model, ("a dog",), seed=9)
    basis = LoRA(1e-2, text_encoder=True)

    def learned(steps, *prior):
        return learn_concept(model, clip, given, [basis], Prior(others, *prior) if prior else None, steps)

    alone, pictures, predicted = learned(1), learned(1, 1.0), learned(1, 1.0, True)
    assert predicted.losses == pytest.approx(alone.losses, rel=1e-6) and pictures.losses[0] > 1.1 * alone.losses[0]
    told = tiny.encode(clip, "a dog")
    moved = [relative(prediction(m, prompt=tiny.encode(c, "a dog")), prediction(model, prompt=told))
             for m, c in (applied(model, clip, learned(4, weight, True)) for weight in (0.0, 100.0))]
    assert 0 < moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("trained", [[LoRA(1e-2)], [TextualInversion("thing", "dog", 1, 1e-2)]],
                         ids=["weights", "word"])
def test_rows_one_after_the_other_learn_what_they_learn_together(trained, monkeypatch):
    """Large models take a step's rows one by one. Pictures of two sizes are never in one forward."""
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    sizes = [images(model, CAPTIONS, size=size) for size in (8, 16)]
    given = ConceptImages((*sizes[0].examples, *sizes[1].examples), "sks")
    prior = Prior(images(model, ("a dog",), seed=9), 0.5)
    together = learn_concept(model, clip, given, trained, prior, steps=2, batch=4)
    monkeypatch.setattr(learner, "TOGETHER", 0)
    alone = learn_concept(model, clip, given, trained, prior, steps=2, batch=4)
    assert alone.losses == pytest.approx(together.losses, rel=1e-5)
    means = [[state["exp_avg"].flatten() for state in run.state["optimiser"]["state"].values()]
             for run in (alone, together)]
    assert relative(*map(torch.cat, means)) < 1e-5
    # AdamW divides a small gradient by its own size
    pairs = [(alone.weights[name], together.weights[name]) for name in together.weights]
    pairs += [(alone.words[w][e], together.words[w][e]) for w in together.words for e in together.words[w]]
    assert pairs and all(relative(a, b) < 1e-4 for a, b in pairs if b.count_nonzero())
    assert relative(*(torch.cat([one.flatten() for one in side]) for side in zip(*pairs))) < 1e-5


@pytest.mark.parametrize("predicted", [False, True], ids=["pictures", "predicted"])
def test_a_prior_of_weight_0_changes_nothing(predicted):
    """Bit for bit, over steps whose draws follow one another."""
    model, clip = tiny.sd15(), tiny.clip()
    others = images(model, ("a dog",), seed=9)
    alone, none, full = (learn_concept(model, clip, images(model, CAPTIONS), [LoRA(1e-2)], prior, steps=3, batch=2)
                         for prior in (None, Prior(others, 0.0, predicted), Prior(others, 1.0)))
    assert none.losses == alone.losses and full.losses[0] > 1.01 * alone.losses[0]
    assert all(torch.equal(none.weights[name], value) for name, value in alone.weights.items())


def test_what_learns_is_a_leaf_on_any_device():
    """An optimiser refuses what was moved there with its history. No number is needed on the device meta."""
    weight = torch.zeros(4, 6, device="meta")
    for basis in (LoRA(1e-2), AllWeights(1e-2)):
        leaves = Weights(basis, {"w": weight}, {}, torch.Generator()).leaves()
        assert leaves and all(leaf.is_leaf and leaf.device == weight.device for leaf in leaves)


@pytest.mark.parametrize("watch", [None, Watch(1)], ids=["plain", "watched"])
def test_a_number_that_is_none_ends_learning_and_the_last_good_step_stays(watch, monkeypatch, caplog):
    """A gradient of the last step alone, whose loss is finite, and those of the next."""
    model, clip, parts = tiny.sd15(), tiny.clip(), []
    basis, plain = LoRA(1e-2), learn_concept(model, clip, images(model), [LoRA(1e-2)], steps=3)
    differentiate, steps = Learner.differentiate, []

    def breaks(self, rows):
        found = differentiate(self, rows)
        steps.append(1)
        if len(steps) == 4:
            self.leaves[-1].grad[0] = float("inf")
        return found

    monkeypatch.setattr(Learner, "differentiate", breaks)
    asked = dict(steps=4, watch=watch, save_every=2, save=parts.append)
    if watch:
        monkeypatch.setattr(Learner, "loss_of", lambda self, *told: 1 / (1 + len(steps)))
    learned = learn_concept(model, clip, images(model), [basis], **asked)
    assert len(learned.losses) == 3 and learned.notes.get("kept", 3) == 3
    assert "in step 4 of 4" in caplog.text and "torch.float32" in caplog.text and "kept, of step 3" in caplog.text
    if not watch:
        for found in (parts[-1], learned):
            assert all(torch.equal(found.weights[name], value) for name, value in plain.weights.items())
    assert [len(part.losses) for part in parts] == [2, 3]


def test_a_words_gradient_that_is_no_number_ends_learning(monkeypatch):
    model, clip, differentiate = tiny.sd15(), tiny.clip(), Learner.differentiate

    def breaks(self, rows):
        found = differentiate(self, rows)
        self.leaves[0].grad[0] = float("nan")
        return found

    monkeypatch.setattr(Learner, "differentiate", breaks)
    with pytest.raises(ValueError, match="no number in step 1"):
        learn_concept(model, clip, images(model), [WORD], steps=1)
