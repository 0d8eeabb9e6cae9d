"""The pixels that an edit may change, and those that it must leave alone."""
import torch.nn.functional as F
from torch import Tensor

TWO_CELLS = 16
"""Pixels in two cells of a latent at an eighth of the picture's side: how far a decoder smears an edit."""


def grow(mask: Tensor, pixels: int) -> Tensor:
    """The mask (B, H, W) with every value spread over a square reaching `pixels` further on each side."""
    rows = F.max_pool2d(mask, (2 * pixels + 1, 1), 1, (pixels, 0))  # a square is separable
    return F.max_pool2d(rows, (1, 2 * pixels + 1), 1, (0, pixels))


def background_mask(edit_mask: Tensor, grow_pixels: int = TWO_CELLS) -> Tensor:
    """1 where a picture must stay as it was: outside every pixel the edit mask (B, H, W) touches, grown."""
    return 1 - grow((edit_mask > 0).float(), grow_pixels)
