"""A watched run of learning stops where nothing more is won, and gives the best that it found, an average
of steps."""
from itertools import count

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.concept.lora import LoRA
from palimpsest.editing import learning
from palimpsest.editing.concepts import Prior
from palimpsest.editing.learner import Learner
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.run_files import load_run, run_file
from palimpsest.editing.watching import Watch
from palimpsest.host.sampling import Solver, schedule
from palimpsest.inversion.storage import write
from palimpsest.nodes.concept.dreamartist import PalimpsestDreamArtist

import tiny
from concepts import EVERY, clip_of, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

BASIS = [LoRA(1e-2)]


def told(monkeypatch, concept, prior=()):
    """Looks that measure these losses, one after the other."""
    left = {True: iter(concept), False: iter(prior)}

    def loss_of(self, shown, count):
        loss = next(left[shown is self.images])
        if isinstance(loss, BaseException):
            raise loss
        return loss

    monkeypatch.setattr(Learner, "loss_of", loss_of)


def learned(steps, watch=None, prior=False, concept=None, **kwargs):
    model, clip = tiny.sd15(), tiny.clip()
    others = Prior(images(model, ("a dog",), seed=9), 1.0) if prior else None
    return learn_concept(model, clip, images(model), BASIS, others, steps, concept=concept, watch=watch, **kwargs)


def sampled(model, clip, text, negative, cfg):
    """The picture of a text, of the noise that looks have."""
    def prompt(text):
        embedded = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)
        return [[embedded.pop("cond"), embedded]]

    sigmas = schedule(model, "simple", 3)
    noise = torch.randn(tiny.latent(model).shape, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    latent = {"samples": model.model.process_latent_out(noise)}
    return SamplerCustom.execute(model, False, 0, cfg, prompt(text), prompt(negative), Solver(), sigmas,
                                 latent).result[0]["samples"]


def same(found, steps, **kwargs):
    """Whether a concept is the average of what was learned until each of some steps. Step t of T weighs
    (t/T)^17.97 - ((t-1)/T)^17.97."""
    runs = [learned(t, **kwargs).weights for t in range(1, steps + 1)]
    shares = [(t / steps) ** 17.97 - ((t - 1) / steps) ** 17.97 for t in range(1, steps + 1)]
    means = {name: sum(share * run[name] for share, run in zip(shares, runs)) for name in found.weights}
    return all(relative(found.weights[name], mean) < 1e-5 for name, mean in means.items() if mean.any())


def test_it_stops_without_a_better_look_and_keeps_the_best(monkeypatch):
    told(monkeypatch, (1.0, 0.8, 0.795, 0.9, 0.85, 0.1))
    found = learned(12, Watch(2, patience=3))
    assert len(found.losses) == 8 and [look.step for look in found.looks] == [0, 2]
    assert same(found, 2) and found.notes["kept"] == 2


def test_it_stops_where_the_class_drifts_and_does_not_come_back(monkeypatch):
    told(monkeypatch, (1.0, 0.9, 0.8, 0.7, 0.6), (1.0, 1.2, 1.05, 1.2, 1.3))
    found = learned(12, Watch(2, drift=0.1, patience=2), prior=True)
    assert len(found.losses) == 8 and [look.prior for look in found.looks] == [1.0, 1.2, 1.05]
    assert same(found, 4, prior=True)


def test_it_says_that_nothing_was_worth_keeping(monkeypatch, caplog):
    told(monkeypatch, (1.0, 0.9, 0.8), (1.0, 1.2, 1.3))
    found = learned(12, Watch(1, drift=0.1, patience=2), prior=True)
    assert found.notes["kept"] == 0 and "Nothing was learned in 2 updates" in caplog.text
    assert "class's grew from 1 to 1.3" in caplog.text


def test_looking_changes_nothing_of_what_is_learned():
    watched, alone = learned(4, Watch(1, "a photo of a *", patience=99, steps=2)), learned(4)
    assert watched.losses == alone.losses and len({look.concept for look in watched.looks}) == len(watched.looks)


def test_a_watched_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Three and two updates learn, see and keep what five do, also through a file."""
    watch = Watch(2, "a photo of a *", steps=1)
    told(monkeypatch, (1.0, 0.8, 0.6, 0.9), (1.0, 1.1, 1.2, 1.2))  # the last at the end of the run
    whole = learned(5, watch, prior=True)
    told(monkeypatch, (1.0, 0.8, 0.9), (1.0, 1.1, 1.1))
    part = learned(3, watch, prior=True)
    write(tmp_path / "a.run.safetensors", *run_file(part))
    for begun in (part, load_run(tmp_path / "a.run.safetensors")):
        told(monkeypatch, (0.6, 0.9), (1.2, 1.2))
        found = learned(2, watch, prior=True, concept=begun)
        assert found.losses == whole.losses and found.notes["kept"] == whole.notes["kept"] == 4
        assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())
        assert [(look.step, look.concept, look.prior) for look in found.looks] == [
            (look.step, look.concept, look.prior) for look in whole.looks] and len(whole.looks) == 3
        assert torch.equal(found.looks[1].picture, whole.looks[1].picture)


def test_a_run_that_stopped_waits_anew_where_it_goes_on(monkeypatch):
    told(monkeypatch, (1.0, 0.8, 0.9, 0.9))
    stopped = learned(9, Watch(1, patience=2))
    told(monkeypatch, (0.9, 0.7, 0.9, 0.9))
    found = learned(9, Watch(1, patience=2), concept=stopped)
    assert (len(stopped.losses), len(found.losses)) == (3, 7) and found.notes["kept"] == 5


@pytest.mark.parametrize("size", [8, 16])
def test_going_on_from_other_pictures_looks_anew(size, monkeypatch, caplog):
    """Without the class pictures that it began with, and from pictures of another size."""
    model, clip, watch = tiny.sd15(), tiny.clip(), Watch(1, "a photo of a *", steps=1)
    told(monkeypatch, (1.0, 0.9), (1.0, 1.1))
    begun = learn_concept(model, clip, images(model), BASIS, Prior(images(model, ("a dog",), seed=9), 1.0), 1,
                          watch=watch)
    told(monkeypatch, (2.0, 1.8))
    found = learn_concept(model, clip, images(model, seed=3, size=size), BASIS, steps=1, concept=begun, watch=watch)
    assert [(look.step, look.concept, look.prior) for look in found.looks] == [(1, 2.0, None), (2, 1.8, None)]
    assert "another choice of" in caplog.text


def test_a_look_that_was_cancelled_is_made_where_the_run_goes_on(monkeypatch):
    told(monkeypatch, (1.0, 0.8, 0.6))
    whole, parts = learned(4, Watch(2)), []
    told(monkeypatch, (1.0, InterruptProcessingException()))
    with pytest.raises(InterruptProcessingException):
        learned(4, Watch(2), save_every=2, save=parts.append)
    told(monkeypatch, (0.8, 0.6))
    found = learned(2, Watch(2), concept=parts[0])
    assert found.losses == whole.losses and [look.step for look in found.looks] == [0, 2, 4]
    assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())


@pytest.mark.parametrize("steps, every, looks", [(3, 9, [0, 3]), (3, 2, [0, 2, 3])])
def test_the_end_is_looked_at_though_no_look_is_due(steps, every, looks, monkeypatch):
    falling = (0.5 ** n for n in count())
    monkeypatch.setattr(Learner, "loss_of", lambda *told: next(falling))
    found, whole = learned(steps, Watch(every)), learned(2 * steps, Watch(every, patience=99))
    assert [look.step for look in found.looks] == looks and same(found, steps)
    further = learned(steps, Watch(every), concept=found)  # it does not know that look
    assert [look.step for look in further.looks] == [look.step for look in whole.looks]


def test_a_cancel_in_the_look_at_the_end_keeps_what_was_learned(monkeypatch):
    parts = []
    told(monkeypatch, (1.0, InterruptProcessingException()))
    with pytest.raises(InterruptProcessingException):
        learned(3, Watch(9), save_every=9, save=parts.append)
    assert [len(part.losses) for part in parts] == [3]


def test_looks_begin_where_a_run_without_them_stopped():
    found = learned(2, Watch(1, patience=99), concept=learned(3))
    assert [look.step for look in found.state["watch"]["looks"]] == [3, 4, 5]
    assert found.losses == learned(5).losses == learned(2, concept=learned(3, Watch(1, patience=99))).losses


@pytest.mark.parametrize("family, cfg", [("sd15", 7.5), ("flux", 1.0)])
def test_a_look_draws_what_the_learned_model_draws(family, cfg, monkeypatch):
    """Euler's steps of the look are those of the MODEL that comes out, which on Flux the host tells its guidance."""
    told(monkeypatch, (1.0, 0.5))
    model, clip = EVERY[family](), clip_of(family)
    given = images(model)
    found = learn_concept(model, clip, given, [LoRA(3e-2, layers="all")], steps=2,
                          watch=Watch(2, "a dog", patience=9, steps=3))
    drawn = sampled(*applied(model, clip, found), "a dog", "", cfg)
    assert len(found.looks) == 2 and relative(found.looks[-1].picture, drawn) < 1e-4
    assert relative(found.looks[0].picture, drawn) > 1e-3


def test_a_look_of_two_words_has_both(monkeypatch):
    """DreamArtist's: the negative word in the negative prompt, under its scale."""
    told(monkeypatch, (1.0, 0.5))
    model, clip = tiny.sd15(), tiny.clip()
    trained, (objective,) = PalimpsestDreamArtist.execute("thing", "cat", 1, 1, 1e-1, 3.0).result
    found = learn_concept(model, clip, images(model), trained, steps=2, objective=objective,
                          watch=Watch(2, "a * here", patience=9, steps=3))
    drawn, without = (sampled(*applied(model, clip, found), "a embedding:thing here", negative, 3.0)
                      for negative in ("embedding:thing-neg", ""))
    assert relative(found.looks[-1].picture, drawn) < 1e-4 < 1e-3 < relative(without, drawn)


def test_the_preview_is_a_sheet_of_the_looks(monkeypatch):
    """Each look's picture stands at the right of those before."""
    told(monkeypatch, (1.0, 0.5, 0.4))
    shown = []
    monkeypatch.setattr(learning, "report_step", lambda callback, step, x, sigma, clean: shown.append(clean.shape[-1]))
    learned(4, Watch(2, "a photo of a *", steps=1))
    assert shown == [8, 16, 16, 24]
