"""Style alignment against explicit softmax maps, and on the host."""
import math

import pytest
import torch
from palimpsest.attention.style_aligned import ReferencePicture, ReferenceRow, Sharing
from palimpsest.editing.sites import Rows, Source
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

from explicit import DIM, Call, Run, apply_maps, attention, by_head, features, relative
from families import FAMILIES
from runs import Case
from style_edits import SITE, case, inject, style


def plain_adain(x, reference):
    """Per head and per channel, as in the authors' code."""
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


SHARINGS = [Sharing(1.0, 0.0, True), Sharing(1.0, math.log(2), True), Sharing(0.5, -1.0, False),
            Sharing(0.0, 0.7, True)]


@pytest.mark.parametrize("share", SHARINGS)
def test_sharing_a_pictures_attention_is_softmax_over_both_pictures_tokens(share):
    target, source = features(2, 0), features(2, 1)
    editor = ReferencePicture(None, frozenset(), 0, 1, share=share)
    got = editor.attend(Rows(Call(Run()), {}, 2), SITE, *target, Source(zip("qkv", source)), attention)
    wanted = plain_sharing(*target, *source, share.scale, share.shift, share.normalised)
    assert relative(got, wanted) < 1e-5  # statistics are computed in float32


@pytest.mark.parametrize("share", SHARINGS)
def test_a_batch_shares_its_first_row_which_stays(share):
    q, k, v = features(3, 0)
    got = ReferenceRow(frozenset(), 0, 1, share).attend(Rows(Call(Run()), {}, 3), SITE, q, k, v, None, attention)
    assert torch.equal(got[:1], attention(q[:1], k[:1], v[:1]))
    for i in (1, 2):
        wanted = plain_sharing(*(x[i:i + 1] for x in (q, k, v)), *(x[:1] for x in (q, k, v)), share.scale, share.shift,
                               share.normalised)
        assert relative(got[i:i + 1], wanted) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_aligned_with_itself_stays(family):
    """At the source's own latents and prompt the reference's tokens equal the target's, whatever their weight."""
    c = case(family)
    for a, b in zip(c.predictions(style(c), c.source), c.predictions(c.model, c.source), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_batch_the_first_row_is_as_without_and_every_other_as_beside_it_alone(family):
    c = case(family)
    starts = torch.cat([c.noise, *(c.noise + 0.5 * torch.randn(c.noise.shape,
                                                               generator=torch.Generator().manual_seed(i))
                                   for i in range(2))])
    together, plain = c.sample(style(c, batch=True, null_too=True), latent=starts), c.sample(latent=starts)
    assert relative(together[0], plain[0]) < 2e-5
    for i in (1, 2):
        pair = c.sample(style(c, batch=True, null_too=True), latent=starts[[0, i]])
        assert relative(together[i], pair[1]) < 2e-5
        assert relative(together[i], plain[i]) > 1e-3


def test_style_is_shared_of_what_other_editors_make_in_either_order():
    c = case()
    found = c.sample(inject(c, style(c)))
    assert torch.equal(found, c.sample(style(c, model=inject(c, c.model))))
    assert relative(found, c.sample(style(c))) > 1e-4 and relative(found, c.sample(inject(c, c.model))) > 1e-4


def test_a_style_is_lent_to_any_noise(caplog):
    """A reference is another picture, so noise that is not its own gives no warning."""
    c = Case(steps=3)
    model = PalimpsestStyleAligned.execute(c.model, 0.0, 1.0, 0.69, 1.0, True, "", True, c.inversion).result[0]
    c.sample(model, latent=torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(9)) * c.noise.std())
    assert "other noise" not in caplog.text
