"""Nodes at the ends of their widgets."""
import pytest
import torch
from palimpsest.host.sampling import schedule
from palimpsest.inversion.trajectory import check_schedule
from palimpsest.nodes.attention.store import PalimpsestAttentionHeatmap, PalimpsestAttentionMask

from node_execution import executor  # noqa: F401
from refusals import blend, inject, maps, plain


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 333, 999, 1000])
def test_every_count_of_steps_makes_a_schedule(steps):
    check_schedule(schedule(plain().model, "ddim_uniform", steps))


@pytest.mark.parametrize("changed", [
    dict(cross_start=0.0, cross_end=1.0, self_start=0.0, self_end=1.0, cross_resolution=1.0, self_resolution=1.0),
    dict(cross_start=0.99, cross_end=1.0, self_start=1.0, self_end=0.0), dict(cross_end=0.0, self_resolution=1.0),
    dict(word_weights="blue: -2, cat: 10, default: 0", word_ends="mat: 0, default: 1")])
def test_attention_inject_at_the_ends_of_its_widgets(changed):
    case = plain()
    assert case.sample(inject(case, **changed)).isfinite().all()


@pytest.mark.parametrize("size", [8, 16])
def test_attention_mask_at_the_ends_of_its_widgets(size):
    """The widest blur and growth, on the smallest picture and without one."""
    attention = maps(size=size)
    for image in (None, torch.zeros(1, 8 * size, 8 * size, 3)):
        for threshold, grow, blur in ((0.0, 64, 16.0), (0.99, 0, 0.1), (0.9, 1, 16.0)):
            mask = PalimpsestAttentionMask.execute(attention, "cat", threshold, grow, blur, image).result[0]
            side = size if image is None else 8 * size
            assert mask.shape == (1, side, side) and mask.isfinite().all()
            assert 0 <= mask.min() and 0 < mask.max() <= 1 + 1e-5


def test_words_lie_where_the_latent_shows_them_on_a_picture_that_vae_encode_crops():
    attention, picture = maps(size=8), torch.rand(1, 71, 69, 3, generator=torch.Generator().manual_seed(0))
    seen = picture[:, 3:67, 2:66]
    whole, part = (PalimpsestAttentionMask.execute(attention, "cat", 0.9, 0, 0.5, image).result[0]
                   for image in (picture, seen))
    assert whole.shape == picture.shape[:3] and torch.equal(whole[:, 3:67, 2:66], part) and part.min() < part.max()
    whole, part = (PalimpsestAttentionHeatmap.execute(attention, image, "cat").result[0] for image in (picture, seen))
    assert torch.equal(whole, part)
    with pytest.raises(ValueError, match="71x90 and the latent 8x8 cells"):
        PalimpsestAttentionMask.execute(attention, "cat", 0.9, 0, 0.5, torch.zeros(1, 90, 71, 3))


@pytest.mark.parametrize("start", [0.0, 0.99])
def test_latent_blend_at_the_ends_of_its_widgets(start):
    case, attention = plain(), maps()
    for threshold in (0.0, 0.99):
        model = blend(case, start=start, source_words="cat", target_words="blue", threshold=threshold,
                      attention=attention)
        assert case.sample(model).isfinite().all()
