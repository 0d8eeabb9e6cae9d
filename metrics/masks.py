"""The pixels that an edit may change, and those that it must leave alone."""
import torch
import torch.nn.functional as F
from torch import Tensor

TWO_CELLS = 16
"""Pixels in two cells of a latent at an eighth of the picture's side: how far a decoder smears an edit."""


def grow(mask: Tensor, pixels: int) -> Tensor:
    """The mask (B, H, W) with every value spread over a square reaching `pixels` further on each side."""
    for dim in (1, 2):  # a square is separable, and the maximum of 2n pixels is that of two maxima of n
        mask, width = F.pad(mask, (0, 0, pixels, pixels) if dim == 1 else (pixels, pixels)), 1
        while width <= 2 * pixels:
            step = min(width, 2 * pixels + 1 - width)
            mask, width = torch.maximum(*(mask.narrow(dim, i, mask.shape[dim] - step) for i in (0, step))), width + step
    return mask


def background_mask(edit_mask: Tensor, grow_pixels: int = TWO_CELLS) -> Tensor:
    """1 where a picture must stay as it was: outside every pixel the edit mask (B, H, W) touches, grown."""
    return (1 - grow((edit_mask > 0).byte(), grow_pixels)).float()
