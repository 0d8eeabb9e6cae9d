"""Papers' edits in joint attention of words and picture, against explicit softmaxes."""
import math
from dataclasses import replace

import pytest
import torch
from palimpsest.editing.run import attach
from palimpsest.guidance.magic_remover import MagicRemover
from palimpsest.host.network import turned
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite

import joint
from joint import JOINT
from joint_by_hand import (
    TARGET,
    by_hand,
    cells,
    everywhere,
    free_prompt,
    in_source,
    inverted,
    made,
    masactrl,
    picture,
    sampled,
)
from node_execution import executor  # noqa: F401
from runs import relative


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen", "wan"])
def test_an_appearance_is_looked_up_with_contrast(family):
    """In the picture's part of the softmax. Words keep theirs."""
    inversion, model = inverted(family=family), made(family)
    tokens = 48 if family == "wan" else 16

    def contrasted(maps):
        rest, mine = maps.split([maps.shape[-1] - tokens, tokens], -1)
        share = mine.sum(-1, keepdim=True)
        mine = (((mine / share - 1 / tokens) * 1.67 + 1 / tokens).clamp(0, 1)) * share
        return torch.cat([rest, mine], -1)

    def put(adain):
        return PalimpsestCrossImageAttention.execute(model, inversion, 0.0, 1.0, 1.0, adain, 1.0, 1.67,
                                                     everywhere(model)).result[0]

    found = sampled(put(1.0), inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q, k_s, v_s), TARGET, tokens, family,
                     changed=contrasted)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(masactrl(model, inversion), inversion)) > 1e-5
    found, source = (model.model.process_latent_in(x).flatten(2) for x in (
        sampled(put(0.0), inversion), picture(family=family)["samples"]))
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(found, 2), statistic(source, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["flux", "sd35 medium"])
def test_what_lies_in_an_objects_place_is_not_looked_up(family):
    """MagicRemover's filling. Words are looked up as before."""
    inversion, model, place = inverted(family=family), made(family), torch.zeros(1, 8, 8)
    place[..., :4] = 1
    outside = torch.arange(16) % 4 > 1
    found = sampled(attach(model, MagicRemover(inversion, (), place, start=0.0)), inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q, k_s[:, :, outside], v_s[:, :, outside]), TARGET, 16,
                     family)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", JOINT)
def test_a_composed_field_has_each_pictures_queries_and_keys(family):
    """The reference's in the left half, the main picture's outside. Here the pictures differ by their prompts alone, so
    that sampling starts where each of them does. Words are looked up beside them."""
    inversion, model, mask = inverted(family=family), made(family), torch.zeros(1, 8, 8)
    tokens, other, mask[..., :4] = cells(inversion, family), joint.cond(5, seed=9), 1
    side = 8 if family in joint.CELLS else 4
    inside = (torch.arange(tokens) % side < side // 2)[:, None]
    theirs = iter(in_source(inversion, other, tokens, family))

    def edit(q, k, v, q_s, k_s, v_s):
        q_r, k_r, _ = next(theirs)
        return torch.where(inside, q_r, q_s), torch.where(inside, k_r, k_s), v

    found = sampled(PalimpsestInjectComposite.execute(model, inversion, replace(inversion, conditioning=other), mask, 0,
                                                      1.0, 0.0, 0).result[0], inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, tokens, family)) < 1e-5
    assert relative(found, sampled(free_prompt(model, inversion), inversion)) > 1e-4


def normalised(x, x_s):
    (mean, deviation), (mean_s, deviation_s) = ((y.mean(2, keepdim=True), (y.var(2, keepdim=True) + 1e-5).sqrt())
                                                for y in (x, x_s))
    return (x - mean) / deviation * deviation_s + mean_s


@pytest.mark.parametrize("family", ["sd3", "auraflow", "flux"])
def test_a_style_is_shared_beside_the_words(family):
    """Its tokens count twice, which is a shift of their scores by ln 2. Where places turn q and k, they are not
    normalised."""
    inversion, model, normalise = inverted(family=family), made(family), family != "flux"

    def style(normalise):
        return PalimpsestStyleAligned.execute(model, 0.0, 1.0, math.log(2), 1.0, normalise, "", True,
                                              inversion=inversion).result[0]

    def edit(q, k, v, q_s, k_s, v_s):
        q, k = (normalised(q, q_s), normalised(k, k_s)) if normalise else (q, k)
        return q, torch.cat([k, k_s, k_s], 2), torch.cat([v, v_s, v_s], 2)

    found = sampled(style(normalise), inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, 16, family)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4
    if family == "flux":
        with pytest.raises(ValueError, match="Flux, each token's place has turned them: turn normalise off"):
            style(True)


@pytest.mark.parametrize("family, shift", [(family, i % 2 * math.log(2)) for i, family in enumerate(JOINT)])
def test_a_batch_shares_its_first_rows_style_beside_each_ones_words(family, shift):
    """That row stays. A shift by ln 2 is its tokens twice."""
    inversion, model = inverted(batch=2, family=family), made(family)
    normalise, times = not turned(model.model.diffusion_model), 2 if shift else 1
    tokens = cells(inversion, family)

    def edit(q, k, v, *_):
        first, here = ([x[:1].expand_as(x) for x in (q, k, v)], (q, k))
        if normalise:
            here = [normalised(x, x_s) for x, x_s in zip(here, first)]
        return here[0], torch.cat([here[1], *[first[1]] * times], 2), torch.cat([v, *[first[2]] * times], 2)

    def alone(maps):
        maps[0, ..., -times * tokens:] = 0
        return maps / maps.sum(-1, keepdim=True)

    found = sampled(PalimpsestStyleAligned.execute(model, 0.0, 1.0, shift, 1.0, normalise, "", True).result[0],
                    inversion)
    plain = sampled(model, inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, tokens, family, changed=alone)) < 1e-5
    assert relative(found[:1], plain[:1]) < 1e-5 and relative(found[1:], plain[1:]) > 1e-4
