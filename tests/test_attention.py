"""Attention edits against plain explicit implementations of the papers' equations, and the reference branch's own promises."""
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from palimpsest.attention.p2p import PromptToPrompt
from palimpsest.attention.reweight import Reweight
from palimpsest.attention.store import read_maps
from palimpsest.editing.reference import levels_together
from palimpsest.editing.run import attach
from palimpsest.editing.sites import AttentionEdit, Rows, Site, Source
from palimpsest.editing.word_maps import refining_share, spread, word_maps
from palimpsest.host.unet import host_attention, positions

import tiny
from explicit import DIM, HEADS, SIDE, Call, Run, apply_maps, attention, features, softmax_maps
from runs import Case, clip, prompts

FAMILIES = list(tiny.UNETS)
PIXELS = SIDE * SIDE


class Schedule:
    """Stands where a run stands: everything asked lies inside (start, end) of a schedule that is at `now`."""
    shape = (1,)

    def __init__(self, now):
        self.now, self.memories = now, {}

    def within(self, sigma, start, end):
        return start <= self.now < end

    def memory(self, editor):
        return self.memories.setdefault(id(editor), {})


CASES = {"swap": ("a red cat on a mat", ["a blue dog on a mat"], {}, {}),
         "swap of a word of more tokens": ("a red cat on a mat", ["a red hippopotamus on a mat"], {}, {}),
         "refine": ("a cat on a mat", ["a fluffy cat on a big mat"], {}, {}),
         "reweight": ("a cat on a red mat", ["a cat on a red mat"], {"red": 3.0, "cat": -1.0}, {}),
         "refine and reweight": ("a cat on a mat", ["a fluffy cat on a mat"], {"fluffy": 2.0, "cat": 0.5}, {}),
         "a word that ends early": ("a red cat on a mat", ["a blue dog on a mat"], {"dog": 2.0}, {"dog": 0.3}),
         "two targets": ("a red cat on a mat", ["a blue cat on a mat", "a red dog on a mat"], {"dog": 2.0}, {})}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("repeats", [1, 2])
def test_p2p_is_the_authors_edit_of_explicit_maps(case, repeats):
    """Base, replaced, refined, equalised and interpolated maps as the authors' controller makes them, one after another."""
    source, targets, weights, ends = CASES[case]
    _, _, edit = prompts(clip(), source, *targets)
    n, length = len(targets), len(edit.pairs[0].target.ids)
    e, until = torch.ones(n, length), torch.full((n, length), 0.8)
    for i, pair in enumerate(edit.pairs):
        for values, into in ((weights, e), (ends, until)):
            for word, value in values.items():
                if word in pair.target.text.split():
                    into[i, list(pair.target.find(word).positions)] = value
    generator = torch.Generator().manual_seed(0)
    q, q_source = (torch.randn(n, PIXELS, HEADS * DIM, generator=generator).double() for _ in range(2))
    k, v, k_source = (torch.randn(n, length, HEADS * DIM, generator=generator).double() for _ in range(3))
    now = 0.5
    out = []
    for i, pair in enumerate(edit.pairs):
        base, own = softmax_maps(q_source[i:i + 1], k_source[i:i + 1]), softmax_maps(q[i:i + 1], k[i:i + 1])
        if pair.mode == "replace":
            edited = torch.einsum("bhps,st->bhpt", base, pair.mapper.double())
        else:
            gathered = base[..., pair.mapper.argmax(0)]
            edited = gathered * pair.kept + own * (1 - pair.kept)
        a = (until[i] > now).double()
        out.append(apply_maps(edited * e[i] * a + own * (1 - a), v[i:i + 1]))
    editor = PromptToPrompt(None, edit.pairs, (0.0, 0.8), (0.0, 0.4), tuple(until), tuple(e))
    rows = Rows(Call(Schedule(now)), {"palimpsest_tokens": tuple(p.target for p in edit.pairs)}, n)
    site = Site("cross", ("middle", 0, 0), (4, 4), 1.0, HEADS)
    got = editor.attend(rows, site, q, k.repeat(1, repeats, 1), v.repeat(1, repeats, 1), Source(q_source, k_source, None), attention)
    torch.testing.assert_close(got, torch.cat(out), rtol=1e-6, atol=1e-6)


def test_word_maps_are_the_softmax_columns_of_the_words():
    """More words than the head dimension, several tokens a word, rows of different words, a text whose columns are repeated."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, PIXELS, HEADS * DIM, generator=generator), torch.randn(2, 30, HEADS * DIM, generator=generator)
    groups = [[(i, i + 1) for i in range(0, 24, 2)], [(3,), (5, 9)]]
    site = Site("cross", ("middle", 0, 0), (4, 4), 1.0, HEADS)
    got = word_maps(attention, site, q, k.repeat(1, 2, 1), groups, 30)
    maps = softmax_maps(q, k).mean(1)
    for row, group in enumerate(groups):
        for column, positions_ in enumerate(group):
            wanted = maps[row, :, list(positions_)].sum(-1).view(4, 4)
            torch.testing.assert_close(got[row, column], wanted, rtol=1e-5, atol=1e-6)


def test_shares_of_the_latents_side_are_those_of_the_grids():
    for family, make in tiny.UNETS.items():
        seen = {}

        def note(q, k, v, options):
            seen[(*options["block"], options["block_index"])] = options["activations_shape"][-1] / 16
            return host_attention(q, k, v, options)

        case = Case(family, size=16, steps=2)
        m = case.model.clone()
        known = positions(m.model.diffusion_model)
        for section, number, _ in known:
            m.set_model_attn1_replace(note, section, number)
        case.sample(m)
        assert seen == known, family


@dataclass(frozen=True, eq=False)
class Looks(AttentionEdit):
    """Reads the source everywhere and changes nothing."""
    inversion: object

    def reads(self, run, sigma):
        return True

    def acts(self, run, site, sigma):
        return False

    def keeps(self, run, site, sigma):
        return "qkv"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_a_reference_that_nobody_uses_leaves_sampling_bit_identical(family, cfg):
    case = Case(family)
    assert torch.equal(case.sample(attach(case.model, Looks(case.inversion)), cfg=cfg), case.sample(cfg=cfg))


@dataclass(frozen=True, eq=False)
class Noted(Looks):
    """Notes the features it is given."""
    notes: dict

    def acts(self, run, site, sigma):
        return True

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes.setdefault((site.kind, site.position), []).append((q.clone(), k.clone(), v.clone(), source))
        return attention(q, k, v)


def assert_rounding(a, b):
    """Equal to some ten roundings of fp32, of the largest value: each forward adds up in an order of its own."""
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_shows_what_the_source_alone_shows(family):
    """With the target's rows at the source's latent and the source's prompt, the features of both are the same."""
    case = Case(family)
    notes = {}
    case.predictions(attach(case.model, Noted(case.inversion, notes)), case.source)
    assert len(notes) == 2 * len(positions(case.model.model.diffusion_model))
    for q, k, v, source in (n for found in notes.values() for n in found):
        for mine, theirs in ((q, source.q), (k, source.k), (v, source.v)):
            assert_rounding(mine, theirs)


def rows_of_forwards(run, case, *args, **kwargs):
    """(result, rows of each of the network's forwards), counted where no wrapper shows: one would keep the steps apart."""
    rows = []
    hook = case.model.model.diffusion_model.register_forward_pre_hook(lambda network, inputs: rows.append(len(inputs[0])))
    try:
        return run(case, *args, **kwargs), rows
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_small_sources_are_read_for_several_steps_at_once(family):
    """The same predictions as with one step a forward, which another pack's wrapper asks for; every step is read once."""
    case = Case(family)
    whole = torch.ones(len(case.edit.pairs[0].target.ids))
    edited = attach(case.model, PromptToPrompt(case.inversion, case.edit.pairs, (0.0, 0.8), (0.0, 0.4), (0.8 * whole,), (whole,)))
    apart = edited.clone()
    apart.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    (a, together), (b, alone) = (rows_of_forwards(Case.predictions, case, model, case.target, 7.5) for model in (edited, apart))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert alone == [1, 2] * 5 + [2] * 2
    assert together == [3] + [2] * 3 + [2] + [2] * 2 + [2] * 2  # 3 rows for 3 steps, then 2 for 2, and 2 steps are not read


def test_a_solver_between_the_steps_reads_every_level_alone():
    case = Case()
    whole = torch.ones(len(case.edit.pairs[0].target.ids))
    editor = PromptToPrompt(case.inversion, case.edit.pairs, (0.0, 1.0), (0.0, 0.4), (whole,), (whole,))
    _, rows = rows_of_forwards(Case.sample, case, attach(case.model, editor), sampler="dpm_2")
    assert rows == [3, 2] + [1, 2] * (2 * len(case.sigmas) - 4)


def test_large_sources_are_read_step_by_step():
    assert [levels_together(1, (side, side)) for side in (16, 32, 64, 96, 128)] == [3, 3, 2, 1, 1]
    assert [levels_together(rows, (16, 16)) for rows in (1, 2, 4)] == [3, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_source_as_target_changes_no_prediction(family):
    case = Case(family)
    _, target, edit = prompts(case.clip, "a red cat on a mat", "a red cat on a mat")
    whole = torch.ones(len(edit.pairs[0].target.ids))
    editor = PromptToPrompt(case.inversion, edit.pairs, (0.0, 1.0), (0.0, 1.0), (whole,), (whole,), 1.0, 1.0)
    edited = case.predictions(attach(case.model, editor), target)
    for a, b in zip(edited, case.predictions(case.model, case.source), strict=True):
        assert_rounding(a, b)


@pytest.mark.parametrize("other", [lambda out, q: out + q.sin(), lambda out, q: 1.5 * out], ids=["adds", "scales"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_packs_patch_acts_once_where_both_prompts_maps_do(family, other):
    """The source as target, half of whose tokens have ended: with its own maps in place of its own, nothing changes."""
    case = Case(family)
    _, target, edit = prompts(case.clip, "a red cat on a mat", "a red cat on a mat")
    model = case.model.clone()
    model.set_model_attn2_replace(lambda q, k, v, options: other(host_attention(q, k, v, options), q), "middle", 0)
    whole = torch.ones(len(edit.pairs[0].target.ids))
    ends = torch.where(whole.cumsum(0) % 2 == 0, 1.0, 0.3)
    editor = PromptToPrompt(case.inversion, edit.pairs, (0.0, 1.0), (0.0, 0.4), (ends,), (whole,))
    for a, b in zip(case.predictions(attach(model, editor), target), case.predictions(model, case.source), strict=True):
        assert_rounding(a, b)


def test_restraint_shares_out_the_words_attention_and_not_what_another_pack_adds():
    _, _, edit = prompts(clip(), "a cat on a mat", "a red cat on a mat")
    tokens = (edit.pairs[0].target,)
    q, (k, v) = features(1, 0)[0], features(1, 1, tokens=len(tokens[0].ids))[1:]
    run = Run()
    run.memory(None)["region"] = torch.eye(2 * SIDE)[None]
    editor, rows = Reweight({"cat": 3.0}, "red", None, None, 0.3, 0, 1), Rows(Call(run), {"palimpsest_tokens": tokens}, 1)
    site = Site("cross", ("middle", 0, 0), (SIDE, SIDE), 0.5, HEADS)
    found = editor.attend(rows, replace(site, patched=True), q, k, v, None, lambda q, k, v: attention(q, k, v) + q.sin())
    torch.testing.assert_close(found, editor.attend(rows, site, q, k, v, None, attention) + q.sin())


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("batch", [1, 2])
def test_maps_of_a_picture_are_those_of_its_forwards_one_by_one(batch, share):
    """Against the host's attention read at each σ. Refined: explicit self-attention maps times the words'
    maps of the forwards before, of the first those of its own."""
    case, notes = Case("sd15", batch=batch, size=16, steps=5), {}
    with torch.inference_mode():
        found = read_maps(case.model, case.inversion, share)
    tokens, shares = case.source[0][1]["palimpsest_tokens"][0], positions(case.model.model.diffusion_model)
    case.predictions(attach(case.model, Noted(case.inversion, notes)), case.source)

    def means(wanted, at):
        """[S, B, h·w, keys]: the mean over sites and heads of the maps at each step."""
        sites = [e for (kind, position), e in notes.items() if (kind, shares[position]) == (wanted, at)]
        return torch.stack([torch.stack([softmax_maps(q, k).mean(1) for q, k, _, _ in step]).mean(0) for step in zip(*sites)])

    cross = means("cross", share)
    steps = torch.stack([cross[..., list(w.positions)].sum(-1) for w in tokens.words], 2)
    assert found.levels == tuple(case.sigmas[:-1].tolist()) and found.fine == 1.0
    torch.testing.assert_close(found.steps.flatten(3), steps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.maps.flatten(2), steps.mean(0), rtol=1e-4, atol=1e-6)
    refined = []
    for n, walk in enumerate(means("self", 1.0)):
        known = steps[:n or 1].mean(0).unflatten(2, found.steps.shape[-2:])
        finer = F.interpolate(known, size=(16, 16), mode="bilinear").flatten(2)
        refined.append((walk @ finer.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(found.refined.flatten(2), torch.stack(refined).mean(0), rtol=1e-4, atol=1e-6)


def test_maps_are_refined_in_an_areas_window():
    """More words than the head dimension, coarser maps of one picture for two rows."""
    maps = torch.rand(1, 11, 2, 2, generator=torch.Generator().manual_seed(3))
    q, k, _ = features(2, 0, tokens=6)
    rows, site = Rows(Call(Run()), {"area": (4, 6, 2, 0)}, 2), Site("self", ("middle", 0, 0), (2, 3), 0.5, HEADS)
    whole = F.interpolate(maps, size=(SIDE, SIDE), mode="bilinear").double()
    wanted = softmax_maps(q, k).mean(1) @ whole[..., 1:3, :3].flatten(2).transpose(1, 2)
    assert 11 > DIM
    torch.testing.assert_close(spread(attention, maps, rows, site, q, k).flatten(2), wanted.transpose(1, 2).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side, share, fine", [(64, 0.25, 0.5), (64, 0.5, 0.5), (64, 1.0, 1.0), (96, 0.25, 0.25), (16, 0.25, 1.0)])
def test_maps_are_refined_where_objects_have_shapes(side, share, fine):
    """SD1.5's grids: on 32² places of 64², on 24² of 96², and never on a coarser grid than that of the maps."""
    unet = {i: s for i, s in enumerate((1.0, 0.5, 0.25, 0.125))}
    with patch("palimpsest.editing.word_maps.positions", lambda network: unet):
        assert refining_share(SimpleNamespace(model=SimpleNamespace(diffusion_model=None)), (side, side), share) == fine
