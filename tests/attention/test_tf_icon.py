"""Inject Composite: the composed field, the composed start, and the main picture, held until its end."""
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.host.unet import host_attention, resolutions
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite

import tiny
from node_execution import executor  # noqa: F401
from recording import case, record
from runs import Case, kept, relative
from watching import assert_close


def composite(case, reference, mask, model=None, margin=1, attention_end=0.4, blend_end=0.8, seed=0):
    return PalimpsestInjectComposite.execute(model or case.model, case.inversion, reference.inversion, mask, margin,
                                             attention_end, blend_end, seed).result[0]


def center(size=8):
    """(a mask in pixels of 4² cells in the middle, the cells within n of them)."""
    mask = torch.zeros(1, 8 * size, 8 * size)
    mask[:, 16:48, 16:48] = 1
    near = [torch.zeros(size, size, dtype=torch.bool) for _ in range(2)]
    for n, cells in enumerate(near):
        cells[2 - n:6 + n, 2 - n:6 + n] = True
    return mask, near


@kept
def donor(family="sd15"):
    c = case(family)
    return Case(family, source="a black dog on a mat", latent=tiny.latent(c.model, seed=21))


@pytest.mark.parametrize("family", tiny.UNETS)
def test_the_composed_field_has_each_pictures_queries_and_keys(family):
    """As attention's own function receives them until 0.4: the reference's in the object, the main
    picture's outside the margin."""
    c, other, (mask, near) = case(family), donor(family), center()
    model, seen = composite(c, other, mask), []
    for position in resolutions(c.model.model.diffusion_model):
        def look(q, k, v, options, position=position):
            seen.append((float(options["sigmas"][0]), position, options["uuids"], options["activations_shape"][-2:],
                         q, k))
            return host_attention(q, k, v, options)
        model.set_model_attn1_replace(look, *position)
    targets = []
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "uuid", lambda executor, x, *args: targets.append(
        executor.class_obj.conds["positive"][0]["uuid"]) or executor(x, *args))
    c.sample(model, cfg=1.0)
    limit, compared = c.model.get_model_object("model_sampling").percent_to_sigma(0.4), 0
    for sigma, position, _, grid, q, k in (s for s in seen if targets[0] in s[2] and s[0] >= limit):
        read = [s for s in seen if s[:2] == (sigma, position) and targets[0] not in s[2]]
        assert len(read) == 2 and read[0][2] != read[1][2]
        inside, band = (torch.nn.functional.adaptive_avg_pool2d(n[None].float(), grid).flatten() >= 0.5 for n in near)
        for mine, (theirs, main) in ((q, (read[0][4], read[1][4])), (k, (read[0][5], read[1][5]))):
            assert torch.equal(mine[:, inside], theirs[:, inside]) and torch.equal(mine[:, ~band], main[:, ~band])
            assert not torch.equal(main[:, inside], theirs[:, inside])
        compared += 1
    assert compared > 4
    assert all(len([s for s in seen if s[:2] == (sigma, position)]) == 1 for sigma, position,
               *_ in seen if sigma < limit)


def test_the_start_is_composed_of_both_noises_and_the_main_picture_held_until_its_end():
    """The second step continues from the composed start, not from the sampler's own x."""
    c, other, (mask, near) = case(), donor(), center()
    calls = record(c, lambda m: composite(c, other, mask, m, blend_end=0.5), cfg=1.0)
    limit = c.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    sigma, x, _, _ = calls[0]
    assert torch.equal(x[..., near[0]], other.inversion.at(sigma)[..., near[0]])
    band = near[1] & ~near[0]
    assert not torch.isclose(x[..., band], c.inversion.at(sigma)[..., band]).any()
    assert abs(float(x[..., band].std()) / sigma - 1) < 0.3
    clean, following, _, _ = calls[1]
    assert_close(following[..., near[1]], (x + (clean - sigma) / sigma * (x - calls[0][2][0]))[..., near[1]])
    for sigma, x, _, got in calls:
        held = (torch.equal(x[..., ~near[1]], c.inversion.at(sigma)[..., ~near[1]]),
                torch.equal(got[..., ~near[1]], c.inversion.latents[-1][..., ~near[1]]))
        assert held == (sigma >= limit,) * 2
    assert calls[0][0] >= limit > calls[-1][0]


def test_every_input_of_inject_composite_acts_and_what_cannot_work_is_refused(caplog):
    c, other, (mask, _) = case(), donor(), center()
    first = c.sample(composite(c, other, mask))
    assert "other noise" not in caplog.text
    for changed in ({"margin": 2}, {"attention_end": 0.0}, {"blend_end": 0.3}, {"seed": 1}, {"mask": mask.roll(8, 1)},
                    {"reference": c}):
        assert relative(c.sample(composite(c, **{"reference": other, "mask": mask, **changed})), first) > 1e-4, changed
    assert torch.equal(c.sample(composite(c, other, mask)), first)
    with pytest.raises(ValueError, match="MASK of the object is empty"):
        composite(c, other, 0 * mask)
    with pytest.raises(ValueError, match=r"\[4, 8, 8\].*\[4, 16, 16\].*canvas"):
        composite(c, Case(size=16, steps=2), mask)
