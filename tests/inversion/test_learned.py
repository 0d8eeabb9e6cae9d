"""Inversions that learn how the target is sampled: what prompt tuning, StyleDiffusion and KV share."""
import pytest
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG
from palimpsest.editing.inverting import invert, learn
from palimpsest.editing.replay import replay as replayed
from palimpsest.editing.replay import retrace
from palimpsest.inversion.storage import load, save
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.inversion.storage import KNOWN

import joint
import tiny
from joint import JOINT
from learning import EVERY, LEARN, NULL, OTHER, STEPS, contents, inverted, replay, style, tuned_prompt
from runs import Case, cancelled_in, relative

each = pytest.mark.parametrize("name", LEARN)
everywhere = pytest.mark.parametrize("name, family",
                                     [(n, f) for n in LEARN for f in (EVERY if n == "prompt" else tiny.UNETS)])


@everywhere
def test_no_step_ends_worse_than_it_began_and_replay_comes_nearer(name, family):
    model = EVERY[family]()
    inversion = inverted(model)
    learned = LEARN[name](model, inversion)
    losses = learned.provenance["losses"]
    assert len(losses) == STEPS and all(last <= first for first, last, _ in losses) and losses[0][1] < losses[0][0]
    clean = inversion.latents[-1]
    assert relative(replay(model, learned), clean) < 0.9 * relative(replay(model, inversion), clean)
    assert learned.provenance["trajectory"] == "DDIM"


@pytest.mark.skipif("flux2" not in JOINT, reason="this host has no Flux.2")
def test_a_text_before_which_the_host_puts_zeros_is_learned_behind_them():
    """Flux.2's, of which a CONDITIONING has the words alone. From the source's own prompt guidance cancels at first."""
    model, negative = JOINT["flux2"](), joint.cond(seed=9)
    inversion = invert("DDIM", model, joint.cond(), {"samples": joint.latent("flux2", model, 1)}, STEPS).inversion
    learned = learn("Null-Text", model, inversion, cfg=7.5, iterations=1)
    clean = inversion.latents[-1]
    plain = relative(retrace(replayed(model, inversion), inversion)[0][-1], clean)
    guided = relative(retrace(replayed(model, learned), learned, cfg=7.5, negative=negative)[0][-1], clean)
    assert guided == pytest.approx(plain, rel=0.05)
    tuned = learn("Prompt Tuning", model, inversion, cfg=2.0, negative=negative, iterations=1)
    assert retrace(replayed(model, tuned), tuned, cfg=2.0, negative=negative)[1].isfinite().all()


@pytest.mark.skipif("hidream" not in JOINT, reason="this host has no HiDream")
def test_what_a_negative_has_beside_its_embedding_is_said(caplog):
    model = JOINT["hidream"]()
    source, other = joint.cond(), joint.cond(seed=9)
    inversion = invert("DDIM", model, source, {"samples": joint.latent("hidream", model, 1)}, STEPS).inversion
    learned = learn("Null-Text", model, inversion, cfg=3.0, iterations=1)
    for negative, said in ((source, False), (other, True)):
        caplog.clear()
        retrace(replayed(model, learned), learned, cfg=3.0, negative=negative)
        assert ("has encoder_hidden_states_llama3 beside its embedding" in caplog.text) == said


@each
def test_nothing_stays_in_the_model(name):
    model = tiny.sd15()
    inversion = inverted(model)
    weights = {n: id(p) for n, p in model.model.named_parameters()}
    before, options = replay(model, inversion), repr(model.model_options)
    replay(model, LEARN[name](model, inversion, 1))
    assert torch.equal(replay(model, inversion), before) and repr(model.model_options) == options
    assert {n: id(p) for n, p in model.model.named_parameters()} == weights


@each
def test_a_cancelled_run_stops_at_the_next_update_and_leaves_nothing(name):
    model = tiny.sd15()
    inversion = inverted(model)
    before = replay(model, inversion)
    assert cancelled_in(4, model, lambda: LEARN[name](model, inversion)) == 4
    assert torch.equal(replay(model, inversion), before)


@each
def test_equal_inputs_give_equal_bytes_and_a_file_returns_them(name, tmp_path):
    model = tiny.sdxl()
    inversion = inverted(model, batch=2)
    learned, again = (LEARN[name](model, inversion, 2) for _ in range(2))
    with torch.inference_mode():
        save(tmp_path / "x", learned, KNOWN)
        loaded = load(tmp_path / "x", KNOWN)
    for other in (again, loaded):
        assert other.theta.keys() == learned.theta.keys()
        assert all(torch.equal(theta.tensor, other.theta[n].tensor) for n, theta in learned.theta.items())
    assert torch.equal(replay(model, loaded), replay(model, learned))


@each
def test_pictures_learn_by_themselves(name):
    """The first of two pictures in a batch equals the same picture alone. One update, because more
    updates amplify rounding."""
    model = tiny.sd15()
    learned = LEARN[name](model, inverted(model, batch=2), 1)
    first = LEARN[name](model, inverted(model), 1)
    assert relative(replay(model, learned)[:1], replay(model, first)) < 1e-3


@pytest.mark.parametrize("name", ["style", "contents"])
def test_attention_inject_before_or_after_replay_is_the_same(name):
    case = Case(steps=STEPS)
    learned = LEARN[name](case.model, case.inversion, 2, negative=case.null)

    def inject(model):
        return PalimpsestAttentionInject.execute(model, learned, case.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "",
                                                 "").result[0]

    def through(*steps):
        model = case.model
        for step in steps:
            model = step(model)
        return case.sample(model)

    def applied(model):
        return PalimpsestReplay.execute(model, learned, 0.0).result[0]

    both = through(inject, applied)
    assert torch.equal(both, through(applied, inject))
    with pytest.raises(ValueError, match="put Replay Inversion on this MODEL"):
        through(inject)
    assert relative(both, through(applied)) > 1e-3


@each
def test_another_negative_prompt_is_said_once_a_run(name, said):
    model = tiny.sd15()
    inversion = inverted(model)
    learned, other = (LEARN[name](model, inversion, 1, negative=negative) for negative in (NULL, OTHER))
    replay(model, learned)
    assert not said()
    for _ in range(2):
        replay(model, other)
        assert ["made with another negative prompt" in text for text in said()] == [True]


GRADIENTS = "Null-Text", "Prompt Tuning", "StyleDiffusion", "KV"


@pytest.mark.parametrize("method", [*GRADIENTS, "Direct"])
def test_guidance_that_learning_does_not_know_is_said(method, said):
    """Direct goes through it."""
    model = tiny.sd15()
    inversion = inverted(model)
    options = {"iterations": 1} if method in GRADIENTS else {}
    negative = None if method == "Null-Text" else NULL
    patched = RescaleCFG().patch(model, 0.7)[0]
    with torch.inference_mode():
        for m, cfg in ((model, 7.5), (patched, 1.0)):
            learn(method, m, inversion, cfg, negative, **options)
            assert not said()
        learn(method, patched, inversion, 7.5, negative, **options)
    assert ["changes this MODEL's guidance (sampler_cfg_function)" in text for text in said()] == (
        [True] if method in GRADIENTS else [])


@pytest.mark.parametrize("given", ["negative", "target"])
@pytest.mark.parametrize("extras, message", [
    ({"control": object()}, "'control'.*remove Apply ControlNet"),
    ({"area": (4, 4, 0, 0)}, "'area'.*remove .*Set Area"),
    ({"mask": torch.ones(1, 8, 8)}, "'mask'.*remove .*Set Mask"),
    ({"start_percent": 0.5, "end_percent": 1.0}, "'start_percent'.*remove .*Timestep Range"),
])
def test_a_negative_or_target_that_is_no_single_prompt_is_refused(given, extras, message):
    """By all that learn by gradients."""
    model = tiny.sd15()
    inversion = inverted(model)
    prompts = {"negative": NULL, given: [[OTHER[0][0], {**OTHER[0][1], **extras}]]}
    with torch.inference_mode():
        for method in GRADIENTS:
            start = {"start": "negative"} if method == "Null-Text" else {}
            with pytest.raises(ValueError, match=f"The {given} CONDITIONING carries {message}"):
                learn(method, model, inversion, 7.5, **prompts, **start)


def test_an_inversion_without_guidance_that_is_sampled_with_it_says_so_once_a_run(said):
    model = tiny.sd15()
    inversion = inverted(model)
    replay(model, inversion, cfg=1.0)
    replay(model, inversion, OTHER, after=lambda m: PalimpsestLatentBlend.execute(
        m, inversion, 0.0, "", "", 0.3, torch.ones(1, 64, 64)).result[0])
    assert not said()
    for _ in range(2):
        replay(model, inversion)
        assert ["made at CFG 1 and is sampled at 7.5" in text for text in said()] == [True]


def test_refuses_what_it_cannot_use():
    model = tiny.sd15()
    inversion = inverted(model)
    with pytest.raises(ValueError, match="has 2 entries, one is needed"):
        tuned_prompt(model, inversion, target=OTHER + NULL)
    with pytest.raises(ValueError, match="The target CONDITIONING has 2 prompts, and there are 1 pictures"):
        tuned_prompt(model, inversion, target=tiny.cond(batch=2))
    learned = tuned_prompt(model, inversion, 1, mix=0.5)
    with pytest.raises(ValueError, match="The target has 16 tokens, the Prompt Tuning INVERSION learned 8"):
        replay(model, learned, tiny.cond(tokens=16))
    with pytest.raises(ValueError, match="The target has 16 tokens, the StyleDiffusion INVERSION learned 8"):
        replay(model, style(model, inversion, 1), tiny.cond(tokens=16))
    learned = contents(model, inversion, 1)
    area = [[OTHER[0][0], {**OTHER[0][1], "area": (4, 4, 0, 0), "strength": 1.0}]]
    with pytest.raises(ValueError, match="the target has an area"):
        replay(model, learned, area)
    with pytest.raises(ValueError, match="names a layer that this MODEL does not have"):
        contents(model, inversion, layers="u9")
    flux = tiny.flux()
    for method in (style, contents):
        with pytest.raises(ValueError, match="U-Nets"):
            method(flux, inverted(flux))
