"""Prompt-to-Prompt against the authors' controller on explicit maps. The source as target changes nothing."""
import pytest
import torch
from palimpsest.attention.p2p import PromptToPrompt
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Rows, Site, Source
from palimpsest.host.unet import host_attention

from explicit import DIM, HEADS, Call, apply_maps, attention, softmax_maps
from families import FAMILIES
from noting import PIXELS, assert_rounding
from runs import Case, clip, prompts


class Schedule:
    """A stand-in for a run: every step asked about is within (start, end) of a schedule that is at `now`."""
    shape = (1,)

    def __init__(self, now):
        self.now, self.states = now, {}

    def within(self, sigma, start, end):
        return start <= self.now < end

    def state(self, editor):
        return self.states.setdefault(id(editor), editor.State())


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
    """Base, replaced, refined, equalised and interpolated maps of the authors' controller, in this order."""
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
    editor = PromptToPrompt(None, edit.pairs, 0.0, tuple(until), tuple(e), 0.0, 0.4)
    rows = Rows(Call(Schedule(now)), {"palimpsest_tokens": tuple(p.target for p in edit.pairs)}, n)
    site = Site("cross", ("middle", 0, 0), (4, 4), 1.0, HEADS)
    got = editor.attend(rows, site, q, k.repeat(1, repeats, 1), v.repeat(1, repeats, 1),
                        Source(q=q_source, k=k_source), attention)
    torch.testing.assert_close(got, torch.cat(out), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_source_as_target_changes_no_prediction(family):
    case = Case(family)
    _, target, edit = prompts(case.clip, "a red cat on a mat", "a red cat on a mat")
    whole = torch.ones(len(edit.pairs[0].target.ids))
    editor = PromptToPrompt(case.inversion, edit.pairs, 0.0, (whole,), (whole,), 0.0, 1.0, 1.0, 1.0)
    edited = case.predictions(attach(case.model, editor), target)
    for a, b in zip(edited, case.predictions(case.model, case.source), strict=True):
        assert_rounding(a, b)


@pytest.mark.parametrize("other", [lambda out, q: out + q.sin(), lambda out, q: 1.5 * out], ids=["adds", "scales"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_packs_patch_acts_once_where_both_prompts_maps_do(family, other):
    """The source is the target, and half of its tokens no longer take the source's maps. The maps are equal, so
    nothing changes."""
    case = Case(family)
    _, target, edit = prompts(case.clip, "a red cat on a mat", "a red cat on a mat")
    model = case.model.clone()
    model.set_model_attn2_replace(lambda q, k, v, options: other(host_attention(q, k, v, options), q), "middle", 0)
    whole = torch.ones(len(edit.pairs[0].target.ids))
    ends = torch.where(whole.cumsum(0) % 2 == 0, 1.0, 0.3)
    editor = PromptToPrompt(case.inversion, edit.pairs, 0.0, (ends,), (whole,), 0.0, 0.4)
    for a, b in zip(case.predictions(attach(model, editor), target), case.predictions(model, case.source), strict=True):
        assert_rounding(a, b)
