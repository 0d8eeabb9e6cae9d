"""Every editor with batches, prompts, guidance and samplers, however the host batches. Tests state
equalities where they can."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from editors import APART, CONCEPTS, EDITORS, FAMILIES, MOVES, NULL_TOO, STEPS, each, each_in_turn, each_with
from joint import JOINT, TODAY
from runs import repeated
from watching import LONG, PROMPTS, acts, assert_close, case, differ, made, near, of, predictions, reads, watch, watched


@each
def test_every_editor_edits(editor, family):
    assert differ(watched(editor, family)[0], watched("", family)[0])


@each_with("cfg", [1.0, 7.5], 2, joint=JOINT)
def test_four_rows_of_one_picture_are_four_runs(editor, family, cfg):
    """Each CFG compares two of the four."""
    c = case(family)
    model, starts = EDITORS[editor](c), near(c, 4)
    together = c.sample(model, latent=starts, cfg=cfg)
    for row in (0, 3) if cfg == 1 else (1, 2):
        assert_close(together[row], c.sample(model, latent=starts[row:row + 1], cfg=cfg)[0])


@each_with("prompts", ["plain", "both long"], 0, joint=JOINT, some=1)
def test_two_targets_in_a_batch_are_two_runs(editor, family, prompts):
    """From equal starts. Four rows repeat the two targets."""
    if family == "lumina2" and not TODAY:
        pytest.skip("ComfyUI 0.3.64 counts the tokens of all prompts of a batch as those of one")
    source, target = PROMPTS[prompts]
    targets = target, target.replace("blue cat on a mat", "mat on a green cat")  # words elsewhere
    c, alone = made(family, source, targets), [made(family, source, (t,)) for t in targets]
    together = c.sample(EDITORS[editor](c), latent=repeated(c.noise, 4))
    found = [a.sample(EDITORS[editor](a)) for a in alone]
    assert differ(*found)
    assert_close(together, torch.cat(found + found))


@each_in_turn(0, joint=JOINT)
def test_each_row_reads_its_own_picture(editor, family):
    """Two pictures, each with its own prompt, in one INVERSION: row i reads picture i mod 2. Rows 1 and 2 tell that
    from i // 2."""
    sources, targets = ("a red cat on a mat", "a black dog on a mat"), ("a blue cat on a mat", "a black pig on a mat")
    both = made(family, sources, targets, picture=2)
    alone = [made(family, s, (t,), picture=i) for i, (s, t) in enumerate(zip(sources, targets))]
    starts = near(both, 4)
    together = both.sample(EDITORS[editor](both), latent=starts)
    for i in (1, 2):
        a = alone[i % 2]
        # some processors multiply more rows in other parts
        assert_close(together[i], a.sample(EDITORS[editor](a), latent=starts[i:i + 1])[0], 3e-5)


@each_in_turn(1, joint=JOINT)
def test_guidance_is_the_hosts_and_the_null_prompt_is_never_edited(editor, family):
    """At equal latents the target's rows equal those of CFG 1, and the null prompt's rows those of the plain model."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family)
    model = EDITORS[editor](c)
    guided, lone, plain = predictions(c, model), predictions(c, model, cfg=1.0), predictions(c, c.model)
    assert not of(lone, "negative")
    for role, wanted in (("positive", lone), ("negative", plain)):
        for a, b in zip(of(guided, role), of(wanted, role), strict=True):
            assert_close(a.x0, b.x0)
    for a, b in zip(of(guided, "positive"), of(plain, "positive"), strict=True):
        assert differ(a.x0, b.x0) == acts(editor, c, a.sigma)


@pytest.mark.parametrize("prompts, null, family", [
    (p, null, FAMILIES[(i + j) % 3]) for i, p in enumerate(PROMPTS) for j, null in enumerate(["", LONG])])
def test_source_as_target_changes_no_prediction(family, prompts, null):
    """With columns that the host repeats, because prompt and null prompt differ in length."""
    c = case(family, prompts)
    same = made(family, c.edit.pairs[0].source.text, (c.edit.pairs[0].source.text,))
    negative = tiny.encode(c.clip, null)
    for editor in ("swap", "refine"):
        edited = predictions(same, EDITORS[editor](same), negative=negative)
        plain = predictions(same, same.model, negative=negative)
        for a, b in zip([e for e in edited if e.role != "reference"], plain, strict=True):
            assert (a.sigma, a.entry, a.together) == (b.sigma, b.entry, b.together)
            assert_close(a.x0, b.x0)


@each_with("prompts", PROMPTS, 1, joint=JOINT, some=2)
def test_the_same_result_however_the_host_batches(editor, family, prompts, split):
    """In one forward, where the host repeats the shorter prompt's columns, and in separate forwards."""
    c = case(family, prompts)
    model = EDITORS[editor](c)
    together, chunks = watch(c, model)
    sizes = {2 + CONCEPTS.get(editor, 0)} | ({1} if editor in APART else set())
    assert {k.together for k in chunks if k.role != "reference"} == sizes
    split(c)
    apart, chunks = watch(c, model)
    assert {k.together for k in chunks} == {1}
    assert_close(apart, together)


@each_in_turn(2)
def test_the_prompts_own_columns_may_be_the_repeated_ones(editor, family, split):
    """Of a null prompt that is longer, which only words' editors could tell."""
    c = case(family)
    model, null = EDITORS[editor](c), tiny.encode(c.clip, LONG)
    together, chunks = watch(c, model, negative=null)
    assert any(k.together > 1 for k in of(chunks, "positive"))
    split(c)
    assert_close(watch(c, model, negative=null)[0], together)


@each_with("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde"], 2, joint=JOINT, some=2)
def test_the_source_is_read_once_a_sigma_and_only_where_an_editor_reads(editor, family, sampler):
    c = case(family)
    result, chunks = watched(editor, family, sampler=sampler)
    sigmas = [k.sigma for k in of(chunks, "positive")]
    assert len(sigmas) == (2 * STEPS - 1 if sampler == "heun" else STEPS)
    read = [s for s in dict.fromkeys(sigmas) if reads(editor, c, s)]
    prompts = 2 if editor in NULL_TOO else 1
    assert [k.sigma for k in of(chunks, "reference")] == [s for s in read for _ in range(prompts)] and len(read) < STEPS
    assert differ(result, watched("", family, sampler=sampler)[0])


OTHER_NOISE = "starts from other noise"


@each_with("replayed", [(0.0, "euler"), (0.5, "dpmpp_2m"), (0.0, "dpmpp_2m_sde")], 0, some=1)
def test_other_noise_is_said_once_a_run_and_never_of_replays_latent(editor, family, replayed, caplog):
    c, (start, sampler) = case(family), replayed
    model, solver, sigmas, latent = PalimpsestReplay.execute(
        EDITORS[editor](c), c.inversion, start, KSamplerSelect.execute(sampler).result[0]).result
    SamplerCustom.execute(model, True, 3, 7.5, c.target, c.null, solver, sigmas, latent)
    assert OTHER_NOISE not in caplog.text
    solver = KSamplerSelect.execute(sampler).result[0]
    for run in (1, 2):
        SamplerCustom.execute(model, True, 3, 7.5, c.target, c.null, solver, c.sigmas, {"samples": c.noise})
        assert caplog.text.count(OTHER_NOISE) == run
