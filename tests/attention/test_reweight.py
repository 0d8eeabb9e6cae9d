"""Re-weighting and restraint of words against explicit softmax maps, and on the host."""
from dataclasses import dataclass, replace

import pytest
import torch
from palimpsest.attention.reweight import Reweight
from palimpsest.editing.sites import Rows, Site
from palimpsest.host.tokens import Tokens, Word
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject

from explicit import HEADS, SIDE, Call, Run, apply_maps, attention, features, only, relative, softmax_maps
from runs import Case, clip, prompts
from style_edits import SITE, case, inject, weigh


def test_restraint_shares_out_the_words_attention_and_not_what_another_pack_adds():
    _, _, edit = prompts(clip(), "a cat on a mat", "a red cat on a mat")
    tokens = (edit.pairs[0].target,)
    q, (k, v) = features(1, 0)[0], features(1, 1, tokens=len(tokens[0].ids))[1:]
    run = Run()
    editor, rows = Reweight({"cat": 3.0}, "red", None, None, 0.3, 0,
                            1), Rows(Call(run), {"palimpsest_tokens": tokens}, 1)
    run.state(editor).region = torch.eye(2 * SIDE)[None]
    site = Site("cross", ("middle", 0, 0), (SIDE, SIDE), 0.5, HEADS)
    found = editor.attend(rows, replace(site, patched=True), q, k, v, None,
                          lambda q, k, v: attention(q, k, v) + q.sin())
    torch.testing.assert_close(found, editor.attend(rows, site, q, k, v, None, attention) + q.sin())


@dataclass(frozen=True)
class Prompt:
    """A stand-in for a prompt's Tokens: "cat" is token 2 of five, "mat" is tokens 3 and 4."""
    ids: tuple = (0, 1, 2, 3, 4)
    named: tuple = (Word("cat", (2,)), Word("mat", (3, 4)))
    find = Tokens.find


@pytest.mark.parametrize("repeats", [1, 2])
def test_re_weighting_scales_words_maps_and_restraint_leaves_them_out_of_the_softmax(repeats):
    """Also with the text's columns repeated, as the host may do."""
    q, (k, v) = features(2, 0)[0], (x.repeat(1, repeats, 1) for x in features(2, 1, tokens=5)[1:])
    m = torch.zeros(1, SIDE, SIDE)
    m[:, :2], m[:, 2] = 1, 0.25
    run = Run()
    editor = Reweight({"cat": 3.0, "mat": -1.0}, "mat", None, None, 0.3, 0, 1)
    run.state(editor).region = m
    rows = Rows(Call(run), {"palimpsest_tokens": (Prompt(),)}, 2)
    got = editor.attend(rows, replace(SITE, kind="cross"), q, k, v, None, attention)
    factors = torch.tensor([1, 1, 3, -1, -1.0]).double().repeat(repeats)
    out = torch.tensor([0, 0, 0, 1, 1.0]).bool().repeat(repeats)
    inside = apply_maps(softmax_maps(q, k) * factors, v)
    outside = apply_maps(softmax_maps(q, k, only(~out)) * factors, v)
    m = m.flatten(1)[..., None]
    torch.testing.assert_close(got, m * inside + (1 - m) * outside, rtol=1e-10, atol=1e-10)


def test_factors_act_on_the_words_of_the_prompt_whatever_else_moves_them():
    """Attention Inject moves words to the source's positions. Before or after it, factors apply to
    the sampled prompt's words."""
    c = Case(source="a cat on a mat", targets=("a big blue cat on a mat",), steps=3)
    found = c.sample(weigh(c, "cat: 4", model=inject(c, c.model)))
    assert torch.equal(found, c.sample(inject(c, weigh(c, "cat: 4"))))
    asked = PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "cat: 4",
                                              "").result[0]
    steps = c.predictions(weigh(c, "cat: 4", model=inject(c, c.model)), c.target)
    for step, (a, b) in enumerate(zip(steps, c.predictions(asked, c.target), strict=True)):
        assert relative(a, b) < 1e-5 or step == 2  # Inject's weights end with it


def test_a_region_is_where_its_words_are_seen_in_the_run():
    c = case()
    model = weigh(c, "", "blue", "cat", 0.98)
    first, second, *_ = c.predictions(model, c.target)
    plain = c.predictions(c.model, c.target)
    assert torch.equal(first, plain[0]) and relative(second, plain[1]) > 1e-5
