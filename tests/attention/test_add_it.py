"""Add-it against a whole run of the authors' code and explicit softmaxes, its spans on Flux, and what it refuses."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.attention.add_it import ExtendedAttention
from palimpsest.editing.editor import editors
from palimpsest.editing.inverting import invert
from palimpsest.editing.replay import replay
from palimpsest.editing.sites import Rows, Source
from palimpsest.host.sampling import Solver, schedule
from palimpsest.nodes.attention.add_it import PalimpsestExtendedAttention
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.showcase.rows import output

import tiny
from explicit import Call, Run, attention, features
from joint import JOINT
from joint_by_hand import SOURCE, TARGET, cells, in_source, inverted, made, of_picture, sampled, shaped, softmax, under
from node_execution import executor  # noqa: F401
from runs import Case, kept, percent, relative
from style_edits import SITE
from tiny import UNETS

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "add_it.json").read_text())


def extended(model, inversion, weight=1.05, start=0.0, end=1.0, double_end=1.0, layers="", null_too=True):
    return PalimpsestExtendedAttention.execute(model, inversion, weight, start, end, double_end, layers,
                                               null_too).result[0]


def prompt(seed, guidance):
    (embedding, extra), = tiny.cond(512, seed=seed)
    return [[embedding, {**extra, "guidance": guidance}]]


@kept
def begun():
    """A MODEL and the INVERSION of its picture, as the authors' numbers were made."""
    model = tiny.flux(mlp_ratio=4.0)
    sigmas = torch.linspace(1, 0, 6)
    return model, invert("DDIM", model, prompt(1, 1.0), {"samples": tiny.latent(model)}, sigmas=sigmas).inversion


@pytest.mark.parametrize("weight", ["1.05", "1.1"])
def test_a_whole_run_gives_the_authors_numbers(weight):
    """Structure transfer at step 1. Double blocks look up the source in that step, single blocks until step 3."""
    model, inversion = begun()
    noise = torch.randn(2, *inversion.shape, generator=torch.Generator().manual_seed(7))[1:]
    start = 0.2 * inversion.path[-1] + 0.8 * noise
    _, solver, sigmas, _ = replay(model, inversion)
    edited = extended(model, inversion, float(weight), double_end=percent(model, 0.7), end=percent(model, 0.3))
    found = SamplerCustom.execute(edited, False, 0, 1.0, prompt(4, 3.5), prompt(4, 3.5), solver, sigmas[1:], {
        "samples": model.model.process_latent_out(start)}).result[0]["samples"]
    found = model.model.process_latent_in(found)[0, 0, 2:4, 2:6].flatten()
    torch.testing.assert_close(found, torch.tensor(AUTHORS[weight]), rtol=0, atol=1e-4)


def plainly(inversion, weight, family):
    """The run in which all queries look up [γ K_p; γ K_t; K_s], by explicit softmaxes."""
    tokens, calls = cells(inversion, family), iter(range(99))
    known = in_source(inversion, SOURCE, tokens, family)

    def explicit(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        own = of_picture(family, 8, tokens, split[0].shape[2])
        if not own or split[1].shape[2] != split[0].shape[2]:
            return func(q, k, v, heads, *args, **kwargs)
        _, k_s, v_s = known[next(calls)]
        return softmax(split[0], torch.cat([weight * split[1], k_s], 2), torch.cat([split[2], v_s], 2))

    found = under(explicit, family, inversion, TARGET)
    assert next(calls) == len(known)
    return found


@pytest.mark.parametrize("family", JOINT)
def test_words_and_picture_look_up_the_source_beside_their_own_weighted_keys(family):
    inversion, model = inverted(family=family), made(family)
    found = sampled(extended(model, inversion, 1.3), inversion)
    assert relative(found, plainly(inversion, 1.3, family)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", UNETS)
def test_a_unets_picture_looks_up_the_source(family):
    """Its self-attention has no words. At the source's own latents and prompt each token is then there twice, so at
    weight 1 nothing changes."""
    c = Case(family, steps=3)
    for weight, same in ((1.0, True), (1.3, False)):
        pairs = zip(c.predictions(extended(c.model, c.inversion, weight), c.source), c.predictions(c.model, c.source))
        assert all((relative(a, b) < 1e-5) == same for a, b in pairs)


def test_one_site_is_softmax_over_weighted_and_source_keys():
    (q, k, v), (_, k_s, v_s) = features(2, 0), features(2, 1)
    editor = ExtendedAttention(None, {}, 0.0, 1.2)
    found = editor.attend(Rows(Call(Run()), {}, 2), SITE, q, k, v, Source(k=k_s, v=v_s), attention)
    wanted = attention(q, torch.cat([1.2 * k, k_s], 1), torch.cat([v, v_s], 1))
    assert (found - wanted).abs().max() < 1e-12


def test_its_spans_are_the_authors_steps_of_fluxs_schedule():
    """Steps 0 to 10 of 30 in double blocks, to 20 in single ones."""
    model, inversion = begun()
    levels, sampling = schedule(model, "simple", 30)[:-1].tolist(), model.get_model_object("model_sampling")
    editor = editors(output(PalimpsestExtendedAttention, model=model, inversion=inversion))[-1]
    steps = {at[0]: sum(sigma >= float(sampling.percent_to_sigma(end)) for sigma in levels)
             for at, end in editor.ends.items()}
    assert steps == {"double": 11, "single": 21}


def test_null_rows_look_up_what_the_source_shows_under_the_null_prompt():
    """Where the source's prompt is the target's and the null prompt too, both predictions are one, so guidance does
    nothing. Without null_too the null prompt's is the plain one."""
    model, inversion = made("flux"), replace(inverted(), conditioning=TARGET)
    lone = sampled(extended(model, inversion), inversion)
    both, target = (sampled(extended(model, inversion, null_too=too), inversion, TARGET, 3.0) for too in (True, False))
    plain = sampled(model, inversion)
    assert relative(both, lone) < 1e-5 < 1e-4 < relative(target, lone)
    assert relative(target, plain + 3 * (lone - plain)) < 1e-5


def test_it_is_made_for_new_noise_and_needs_some(caplog):
    """With Latent Blend beside it too, which by itself asks for the inversion's noise."""
    model, inversion = begun()
    noise = {"samples": torch.randn(1, *inversion.shape, generator=torch.Generator().manual_seed(7))}

    def run(model, latent):
        blended = output(PalimpsestLatentBlend, model=model, inversion=inversion, mask=torch.eye(64)[None])
        SamplerCustom.execute(blended, False, 0, 1.0, prompt(4, 3.5), prompt(4, 3.5), Solver(), inversion.sigmas,
                              latent)

    run(extended(model, inversion), noise)
    assert "other noise" not in caplog.text
    run(model, noise)
    assert "other noise" in caplog.text
    with pytest.raises(ValueError, match="a picture without its noise"):
        run(extended(model, inversion), {"samples": 0.1 * noise["samples"]})


def test_a_mask_for_each_row_inside_it_is_refused():
    q, k, v = features(1, 0)
    with pytest.raises(ValueError, match="Extended Attention is given 1 of 2 rows .* give that editor one mask"):
        ExtendedAttention(None, {}, 0.0, 1.2).attend(Rows(Call(Run()), {}, 2), SITE, q, k, v, Source(k=k, v=v),
                                                     attention)


def test_a_span_that_holds_nothing_is_refused():
    model, inversion = begun()
    with pytest.raises(ValueError, match="runs from 0.7 to 0.68 of the schedule, .* set its end above its start"):
        extended(model, inversion, start=0.7, end=0.68, double_end=0.35)
    with pytest.raises(ValueError, match='"m0" names a layer that this MODEL does not have'):
        extended(model, inversion, layers="m0")
