"""Masks in pixels, the latent cells that they free, and the smoothing of maps."""
import itertools
import math
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from palimpsest.editing.masks import covered, latent_mask, masks_of, picture_mask, smoothed


@pytest.mark.parametrize("size", [(64, 64), (20, 20), (9, 9), (8, 8), (5, 5), (1, 1)])
def test_a_latent_cell_takes_the_largest_value_it_covers(size):
    """Also if the sizes are not multiples, and if the mask is smaller."""
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(1))

    def span(i, whole):
        return slice(i * whole // 8, math.ceil((i + 1) * whole / 8))

    wanted = torch.stack([torch.stack([mask[:, span(y, size[0]), span(x, size[1])].amax((1, 2)) for x in range(8)], -1)
                          for y in range(8)], -2)
    assert torch.equal(latent_mask(mask, (8, 8)), wanted)


def test_masks_of_pictures_that_vae_encode_crops_lie_where_the_latent_shows_them():
    """For every size the host's own crop, cell by cell, and back."""
    vae = SimpleNamespace(crop_input=True, output_channels=3, spacial_compression_encode=lambda: 8)
    for height, width in itertools.product(range(64, 80), repeat=2):
        mask = torch.rand(1, height, width, generator=torch.Generator().manual_seed(width)) ** 9
        seen = comfy.sd.VAE.vae_encode_crop_pixels(vae, mask[..., None].expand(-1, -1, -1, 3))[..., 0]
        cells = seen.shape[1] // 8, seen.shape[2] // 8
        assert torch.equal(latent_mask(mask, cells), seen.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).amax((2, 4)))
        assert torch.equal(mask[0][covered((height, width), cells)], seen[0])
        whole = picture_mask(seen, (height, width))
        assert whole.shape == mask.shape and torch.equal(whole[0][covered((height, width), cells)], seen[0])


def test_a_mask_of_another_shape_is_refused_and_one_of_one_value_is_not():
    mask = torch.zeros(1, 60, 52)
    assert not latent_mask(mask, (8, 8)).any()
    mask[:, 9] = 1
    with pytest.raises(ValueError, match="52x60 and the latent 8x8 cells, which is another shape"):
        latent_mask(mask, (8, 8))


def test_the_smoothing_is_a_gaussian_of_variance_one_half():
    point = torch.zeros(1, 5, 5)
    point[:, 2, 2] = 1
    found = smoothed(point)[0]
    assert float(found.sum()) == pytest.approx(1) and float(found[2, 1]
                                                            / found[2, 2]) == pytest.approx(0.36788, rel=1e-4)
    assert float(found[1, 1] / found[2, 2]) == pytest.approx(0.36788 ** 2, rel=1e-4) and found[0].sum() == 0


def test_a_videos_frames_may_have_masks_of_their_own():
    """One each of the latent, or of the video, whose frames after the first lie two in a latent's."""
    video = SimpleNamespace(shape=torch.Size((16, 3, 4, 4)), pictures=1)
    m = torch.rand(5, 32, 32, generator=torch.Generator().manual_seed(3))
    cells = latent_mask(m, (4, 4))
    assert torch.equal(masks_of(m[:3], video), cells[None, :3])
    wanted = torch.stack([cells[0], cells[1:3].amax(0), cells[3:].amax(0)])
    assert torch.equal(masks_of(m, video), wanted[None])
    for count in 1, 2, 4:  # one for all, or too few or many, which the editor refuses
        assert torch.equal(masks_of(m[:count], video), cells[:count])
    pictures = SimpleNamespace(shape=torch.Size((16, 3, 4, 4)), pictures=3)
    assert torch.equal(masks_of(m[:3], pictures), cells[:3])
    assert torch.equal(masks_of(m, SimpleNamespace(shape=torch.Size((4, 4, 4)), pictures=1)), cells)
