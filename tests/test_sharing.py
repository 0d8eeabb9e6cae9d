"""Style alignment, cross-image attention and re-weighting: against plain explicit softmax maps, and on the host."""
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from palimpsest.attention import cross_image
from palimpsest.attention.cross_image import CrossImage, contrasted, statistics, two_finest
from palimpsest.attention.reweight import Reweight
from palimpsest.attention.style_aligned import ReferencePicture, ReferenceRow, Sharing
from palimpsest.editing.editor import editors
from palimpsest.editing.layers import parse_layers
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Rows, Site, Source
from palimpsest.host.tokens import Tokens, Word
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

import tiny
from explicit import DIM, HEADS, SIDE, Call, Run, apply_maps, attention, by_head, features, only, relative, softmax_maps
from runs import Case, invert, kept
from test_features import sd15, sdxl

FAMILIES = list(tiny.UNETS)
SITE = Site("self", ("output", 0, 0), (SIDE, SIDE), 0.5, HEADS)


@kept
def case(family="sd15", **kwargs):
    return Case(family, steps=3, **kwargs)


def plain_adain(x, reference):
    """Head by head and channel by channel, as the authors' code has it."""
    x, reference = by_head(x), by_head(reference)
    def stats(y):
        return y.mean(-2, keepdim=True), (y.var(-2, keepdim=True) + 1e-5).sqrt()
    (mean, std), (mean_r, std_r) = stats(x), stats(reference)
    return ((x - mean) / std * std_r + mean_r).transpose(1, 2).flatten(2)


def plain_sharing(q, k, v, q_r, k_r, v_r, scale=1.0, shift=0.0, normalised=True):
    if normalised:
        q, k = plain_adain(q, q_r), plain_adain(k, k_r)
    own, theirs = (by_head(q) @ by_head(keys).transpose(-1, -2) / DIM ** 0.5 for keys in (k, k_r))
    maps = torch.cat([own, scale * theirs + shift], -1).softmax(-1)
    return apply_maps(maps, torch.cat([v, v_r], 1))


SHARINGS = [Sharing(1.0, 0.0, True), Sharing(1.0, math.log(2), True), Sharing(0.5, -1.0, False), Sharing(0.0, 0.7, True)]


@pytest.mark.parametrize("share", SHARINGS)
def test_sharing_a_pictures_attention_is_softmax_over_both_pictures_tokens(share):
    target, source = features(2, 0), features(2, 1)
    got = ReferencePicture(None, frozenset(), 0, 1, (), share).attend(Rows(Call(Run()), {}, 2), SITE, *target, Source(*source),
                                                                      attention)
    wanted = plain_sharing(*target, *source, share.scale, share.shift, share.normalised)
    assert relative(got, wanted) < 1e-5  # statistics are taken in float32


@pytest.mark.parametrize("share", SHARINGS)
def test_a_batch_shares_its_first_row_which_stays(share):
    q, k, v = features(3, 0)
    got = ReferenceRow(frozenset(), 0, 1, (), share).attend(Rows(Call(Run()), {}, 3), SITE, q, k, v, None, attention)
    assert torch.equal(got[:1], attention(q[:1], k[:1], v[:1]))
    for i in (1, 2):
        wanted = plain_sharing(*(x[i:i + 1] for x in (q, k, v)), *(x[:1] for x in (q, k, v)), share.scale, share.shift,
                               share.normalised)
        assert relative(got[i:i + 1], wanted) < 1e-5


def style(c, start=0.0, end=1.0, shift=0.69, scale=1.0, normalise=True, layers="", null_too=False, inversion=None, model=None,
          batch=False):
    return PalimpsestStyleAligned.execute(model or c.model, start, end, shift, scale, normalise, layers, null_too,
                                          None if batch else inversion or c.inversion).result[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_aligned_with_itself_stays(family):
    """At the source's own latents and prompt the reference's tokens are the target's own, whatever their weight."""
    c = case(family)
    for a, b in zip(c.predictions(style(c), c.source), c.predictions(c.model, c.source), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_batch_the_first_row_is_as_without_and_every_other_as_beside_it_alone(family):
    c = case(family)
    starts = torch.cat([c.noise, *(c.noise + 0.5 * torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(i))
                                   for i in range(2))])
    together, plain = c.sample(style(c, batch=True, null_too=True), latent=starts), c.sample(latent=starts)
    assert relative(together[0], plain[0]) < 2e-5
    for i in (1, 2):
        pair = c.sample(style(c, batch=True, null_too=True), latent=starts[[0, i]])
        assert relative(together[i], pair[1]) < 2e-5
        assert relative(together[i], plain[i]) > 1e-3


def inject(c, model):
    return PalimpsestAttentionInject.execute(model, c.inversion, c.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "", "").result[0]


def test_style_is_shared_of_what_other_editors_make_in_either_order():
    c = case()
    found = c.sample(inject(c, style(c)))
    assert torch.equal(found, c.sample(style(c, model=inject(c, c.model))))
    assert relative(found, c.sample(style(c))) > 1e-4 and relative(found, c.sample(inject(c, c.model))) > 1e-4


@kept
def other(family="sd15"):
    """The inversion of another picture."""
    c = case(family)
    return invert(c.model, c.source, tiny.latent(c.model, seed=9, std=2.0), 3)[0]


def cross(c, start=0.0, end=1.0, coarse_end=1.0, adain_start=1.0, swap_guidance=1.0, contrast=1.0, layers="", model=None,
          appearance=None, **masks):
    return PalimpsestCrossImageAttention.execute(model or c.model, appearance or other(c.family), start, end, coarse_end,
                                                 adain_start, swap_guidance, contrast, layers, **masks).result[0]


@pytest.mark.parametrize("cells", [1, 2 * HEADS * 5 * SIDE ** 2, 2 ** 24])
def test_contrast_is_that_of_the_maps_however_many_are_made_at_once(cells, monkeypatch):
    monkeypatch.setattr(cross_image, "CELLS", cells)
    q, k, v = (2 * x for x in features(2, 0))
    maps = softmax_maps(q, k)
    mean = maps.mean(-1, keepdim=True)
    spread = (maps - mean) * 1.67 + mean
    assert spread.min() < 0 and spread.max() > 1
    assert relative(attention(q, k, v) + contrasted(q, k, v, HEADS, 1.67), apply_maps(spread.clip(0, 1), v)) < 1e-5
    assert contrasted(q, k, v, HEADS, 1.0).abs().max() < 1e-5


def test_contrast_changes_maps_and_keeps_what_another_function_makes_of_the_plain_ones():
    """Another pack's patch or an edit further in, called once with the appearance's k and v."""
    target, source = features(2, 0), features(2, 1)
    called = []

    def other(q, k, v):
        called.append((q, k, v))
        return 1.5 * attention(q, k, v) + 1

    editor = CrossImage(None, frozenset(), 0, 1, contrast=1.67)
    got = editor.attend(Rows(Call(Run()), {}, 2), SITE, *target, Source(*source), other)
    maps, mean = softmax_maps(target[0], source[1]), 1 / SIDE ** 2
    wanted = apply_maps(((maps - mean) * 1.67 + mean).clip(0, 1) + 0.5 * maps, source[2]) + 1
    assert relative(got, wanted) < 1e-5
    assert len(called) == 1 and all(a is b for a, b in zip(called[0], (target[0], *source[1:]), strict=True))


def test_statistics_are_those_of_the_places_in_the_mask():
    x, m = torch.randn(2, 4, 6, 6), (torch.rand(2, 6, 6) > 0.5).float()
    mean, std = statistics(x, m)
    for i in range(2):
        for channel in range(4):
            inside = x[i, channel][m[i] == 1]
            torch.testing.assert_close(mean[i, channel, 0, 0], inside.mean())
            torch.testing.assert_close(std[i, channel, 0, 0], (inside.var() + 1e-5).sqrt())


def test_the_two_finest_grids_of_the_decoder_are_the_papers_layers():
    assert two_finest(sd15()) == parse_layers("u3-8", sd15()) and two_finest(sdxl()) == parse_layers("u", sdxl())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_its_own_appearance_stays(family):
    c = case(family)
    mine = cross(c, swap_guidance=3.5, appearance=c.inversion)
    for a, b in zip(c.predictions(mine, c.source), c.predictions(c.model, c.source), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_goes_from_the_prediction_without_the_exchange_which_other_editors_edit_too(family):
    c = case(family)
    for base in (c.model, inject(c, c.model)):
        found, swapped, own = (c.predictions(m, c.target, cfg=4.0) for m in (
            cross(c, model=base, swap_guidance=3.5), cross(c, model=base), base))
        null = c.predictions(c.model, c.null)
        for alpha, x0, swap, plain, n in zip((3.5, 2.625, 1.75), found, swapped, own, null, strict=True):
            assert relative(x0, plain + alpha * (swap - plain)) < 1e-4
            assert relative(swap, plain) > 1e-3 and relative(plain, n) > 1e-3


@dataclass(frozen=True, eq=False)
class Noted(CrossImage):
    notes: set = None

    def attend(self, rows, site, *args, **kwargs):
        self.notes.add((rows.call.sigma, site.share))
        return super().attend(rows, site, *args, **kwargs)


def test_each_grid_has_an_end_of_its_own():
    """Of three steps, the finest grid at two, the next at the first."""
    c, seen = case(), set()
    editor = editors(cross(c, end=0.7, coarse_end=0.4))[0]
    noted = Noted(**{f.name: getattr(editor, f.name) for f in fields(editor)}, notes=seen)
    c.sample(attach(c.model, noted), cfg=1.0)
    first, second, *_ = c.sigmas.tolist()
    assert seen == {(first, 1.0), (second, 1.0), (first, 0.5)}


def test_the_object_takes_the_mean_and_deviation_of_the_appearances():
    c = case()
    model = cross(c, end=0.1, coarse_end=0.1, adain_start=0.5, structure_mask=half(), appearance_mask=1 - half())
    plain, clean = cross(c, end=0.1, coarse_end=0.1), other().latents[-1]
    for step, (a, b) in enumerate(zip(c.predictions(model, c.target), c.predictions(plain, c.target), strict=True)):
        if step == 0:
            assert torch.equal(a, b)
            continue
        left, right = a[..., :4], clean[..., 4:]
        torch.testing.assert_close(left.mean((2, 3)), right.mean((2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left.std((2, 3)), right.std((2, 3)), atol=1e-4, rtol=1e-3)
        assert torch.equal(a[..., 4:], b[..., 4:]) and relative(left, b[..., :4]) > 1e-3


def half():
    m = torch.zeros(1, 64, 64)
    m[:, :, :32] = 1
    return m


def weigh(c, word_weights="", restrained="", region_words="", threshold=0.3, start=0.0, end=1.0, mask=None, model=None):
    return PalimpsestAttentionReweight.execute(model or c.model, word_weights, restrained, region_words, threshold, start, end,
                                               mask=mask).result[0]


@dataclass(frozen=True)
class Prompt:
    """Stands where a prompt's Tokens stand: "cat" is token 2 of five, "mat" tokens 3 and 4."""
    ids: tuple = (0, 1, 2, 3, 4)
    named: tuple = (Word("cat", (2,)), Word("mat", (3, 4)))
    find = Tokens.find


@pytest.mark.parametrize("repeats", [1, 2])
def test_re_weighting_scales_words_maps_and_restraint_leaves_them_out_of_the_softmax(repeats):
    """With the text's columns repeated, too, as the host may."""
    q, (k, v) = features(2, 0)[0], (x.repeat(1, repeats, 1) for x in features(2, 1, tokens=5)[1:])
    m = torch.zeros(1, SIDE, SIDE)
    m[:, :2], m[:, 2] = 1, 0.25
    run = Run()
    run.memory(None)["region"] = m
    editor = Reweight({"cat": 3.0, "mat": -1.0}, "mat", None, None, 0.3, 0, 1)
    rows = Rows(Call(run), {"palimpsest_tokens": (Prompt(),)}, 2)
    got = editor.attend(rows, replace(SITE, kind="cross"), q, k, v, None, attention)
    factors = torch.tensor([1, 1, 3, -1, -1.0]).double().repeat(repeats)
    out = torch.tensor([0, 0, 0, 1, 1.0]).bool().repeat(repeats)
    inside = apply_maps(softmax_maps(q, k) * factors, v)
    outside = apply_maps(softmax_maps(q, k, only(~out)) * factors, v)
    m = m.flatten(1)[..., None]
    torch.testing.assert_close(got, m * inside + (1 - m) * outside, rtol=1e-10, atol=1e-10)


def test_factors_act_on_the_words_of_the_prompt_whatever_else_moves_them():
    """Attention Inject moves words to the source's places: before or after it, factors are of the sampled prompt's words."""
    c = Case(source="a cat on a mat", targets=("a big blue cat on a mat",), steps=3)
    found = c.sample(weigh(c, "cat: 4", model=inject(c, c.model)))
    assert torch.equal(found, c.sample(inject(c, weigh(c, "cat: 4"))))
    asked = PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "cat: 4", "").result[0]
    steps = c.predictions(weigh(c, "cat: 4", model=inject(c, c.model)), c.target)
    for step, (a, b) in enumerate(zip(steps, c.predictions(asked, c.target), strict=True)):
        assert relative(a, b) < 1e-5 or step == 2  # where Inject has ended, its weights have too


def test_a_region_is_where_its_words_are_seen_in_the_run():
    c = case()
    model = weigh(c, "", "blue", "cat", 0.98)
    first, second, *_ = c.predictions(model, c.target)
    plain = c.predictions(c.model, c.target)
    assert torch.equal(first, plain[0]) and relative(second, plain[1]) > 1e-5


def variants(c):
    """{node: [its base, and one run a widget or input]}."""
    return {"style": [style(c), style(c, start=0.5), style(c, end=0.5), style(c, shift=0.0), style(c, scale=0.9),
                      style(c, normalise=False), style(c, layers="u2"), style(c, null_too=True), style(c, batch=True)],
            "cross": [cross(c), cross(c, start=0.5), cross(c, end=0.5), cross(c, coarse_end=0.5), cross(c, adain_start=0.5),
                      cross(c, swap_guidance=2.0), cross(c, contrast=1.67), cross(c, layers="u2"),
                      cross(c, appearance=c.inversion), cross(c, adain_start=0.5, structure_mask=half()),
                      cross(c, adain_start=0.5, appearance_mask=half())],
            "weigh": [weigh(c, "cat: 3"), weigh(c, "cat: 2"), weigh(c, "mat: 3"), weigh(c, "cat: 3", start=0.5),
                      weigh(c, "cat: 3", end=0.5), weigh(c, "cat: 3", "blue", mask=half()),
                      weigh(c, restrained="blue", mask=1 - half()), weigh(c, restrained="cat", mask=half()),
                      weigh(c, "", "blue", "cat", 0.9), weigh(c, "", "blue", "cat", 0.98), weigh(c, "", "blue", "mat", 0.98)]}


@pytest.mark.parametrize("node", ["style", "cross", "weigh"])
def test_every_input_acts(node):
    """No two settings give one picture, and none gives the plain one."""
    c = case()
    starts = torch.cat([c.noise, 1.1 * c.noise])
    with torch.inference_mode():
        found = [c.sample(model, latent=starts) for model in (c.model, *variants(c)[node])]
    for i, a in enumerate(found):
        for j, b in enumerate(found[:i]):
            assert relative(a, b) > 1e-5, (i, j)


def wrong(c):
    return {
        "style that ends first": (lambda: style(c, 0.5, 0.5), "0.5 to 0.5.*paper: 0 and 1"),
        "no such layer": (lambda: style(c, layers="u7"), r"u7.*it has d0 \(1\)"),
        "exchange that ends first": (lambda: cross(c, 0.9, 0.5, 0.7), "0.9 to 0.7.*paper: 0.1 and 0.9"),
        "no object": (lambda: cross(c, adain_start=0.2, structure_mask=0 * half()), "structure_mask has 1 of 1 masks without"),
        "masks without AdaIN": (lambda: cross(c, structure_mask=half()), "adain_start 1.*lower it"),
        "three masks": (lambda: c.sample(cross(c, adain_start=0.2, structure_mask=half().repeat(3, 1, 1))),
                        "3 masks.*1 rows"),
        "nothing to weigh": (lambda: weigh(c, "cat: 1"), "'cat: 1'.*change nothing"),
        "restrained to nowhere": (lambda: weigh(c, restrained="cat"), "restrained words but no region"),
        "a region for no word": (lambda: weigh(c, "cat: 2", mask=half()), "a region but no restrained words"),
        "two regions": (lambda: weigh(c, restrained="cat", region_words="mat", mask=half()), "both a mask and.*'mat'"),
        "unknown word": (lambda: c.sample(weigh(c, "dog: 2")), '"dog" names no word.*blue, cat'),
        "three masks for words": (lambda: c.sample(weigh(c, restrained="cat", mask=half().repeat(3, 1, 1))), "3 masks.*1 row"),
        "no words": (lambda: c.sample(weigh(c, "cat: 2"), positive=c.null), "carries none.*Prompt Edit"),
        "one row": (lambda: c.sample(style(c, batch=True)), "has 1 row.*Repeat Latent Batch.*INVERSION"),
    }


@pytest.mark.parametrize("mistake", ["style that ends first", "no such layer", "one row", "exchange that ends first", "no object",
                                     "masks without AdaIN", "three masks", "nothing to weigh", "restrained to nowhere",
                                     "a region for no word", "two regions", "unknown word", "three masks for words", "no words"])
def test_what_cannot_work_is_refused(mistake):
    with torch.inference_mode():
        make, message = wrong(case())[mistake]
        with pytest.raises(ValueError, match=message):
            make()


def test_a_style_is_lent_to_any_noise(caplog):
    """A reference is another picture: nothing is said of noise that is not its own."""
    c = Case(steps=3)
    model = PalimpsestStyleAligned.execute(c.model, 0.0, 1.0, 0.69, 1.0, True, "", True, c.inversion).result[0]
    c.sample(model, latent=torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(9)) * c.noise.std())
    assert "other noise" not in caplog.text
