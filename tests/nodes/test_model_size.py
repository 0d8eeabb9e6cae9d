"""Size for the Model: which size a model was made for, and a picture of that size."""
import comfy.latent_formats
import pytest
import torch
from palimpsest.host.sizes import fitted, native_side
from palimpsest.miniature.model import load_miniature
from palimpsest.nodes.model_size import PalimpsestModelSize

import tiny

MADE_FOR = {"sd15": 512, "sd2": 768, "sdxl": 1024, "flux": 1024}


@pytest.mark.parametrize("family", MADE_FOR)
def test_a_model_says_the_size_that_it_was_made_for(family):
    assert native_side(getattr(tiny, family)()) == MADE_FOR[family]


def test_the_miniature_says_its_own():
    assert native_side(load_miniature()[0]) == 128


@pytest.mark.parametrize("height, width", [(211, 300), (3000, 4000), (64, 64), (100, 1900)])
@pytest.mark.parametrize("side", [128, 512, 1024])
def test_the_shape_and_the_count_of_pixels_stay_within_half_a_cell(height, width, side):
    high, wide = fitted(height, width, side)
    assert high % 8 == wide % 8 == 0
    scale = side / (height * width) ** 0.5
    assert abs(high - height * scale) <= 4 and abs(wide - width * scale) <= 4


def test_the_sides_are_whole_cells_of_the_models_latent(monkeypatch):
    model, coarse = tiny.flux(), comfy.latent_formats.LTXV()
    coarse.spacial_downscale_ratio = 32  # which an older host does not say
    monkeypatch.setattr(model.model, "latent_format", coarse)
    image, mask = PalimpsestModelSize.execute(model, torch.rand(1, 60, 70, 3), 100).result
    assert image.shape == (1, 96, 96, 3) and mask.shape == (1, 96, 96)


def size(picture, mask=None, side=64):
    return PalimpsestModelSize.execute(tiny.sd15(), picture, side, mask).result


def test_a_picture_and_its_mask_are_scaled_together():
    picture = torch.zeros(2, 200, 100, 4)
    picture[:, 40:80, 20:60] = 1
    image, mask = size(picture, picture[..., 0])
    assert image.shape == (2, 88, 48, 3) and mask.shape == (2, 88, 48)
    assert torch.equal(image[..., 0], mask) and 0 < mask.mean() < picture[..., 0].mean() * 1.05
    larger, _ = size(picture, side=256)
    assert larger.shape == (2, 360, 184, 3) and 0 <= larger.min() and larger.max() <= 1


def test_a_picture_of_that_size_is_left_as_it_is():
    picture = torch.rand(1, 64, 64, 3)
    image, mask = size(picture)
    assert torch.equal(image, picture) and torch.equal(mask, torch.ones(1, 64, 64))


def test_a_mask_of_one_value_may_have_any_size_and_another_must_fit():
    image, mask = size(torch.rand(1, 50, 70, 3), torch.zeros(1, 64, 64))  # Load Image's, of a picture without one
    assert mask.shape == image.shape[:3] and not mask.any()
    with pytest.raises(ValueError, match="The mask is 64x64 and the picture 70x50: connect the mask of this picture"):
        size(torch.rand(1, 50, 70, 3), torch.eye(64)[None])
