"""The pixels that an edit may change, and those that it must leave alone."""
import torch
import torch.nn.functional as F
from torch import Tensor

TWO_CELLS = 16
"""Pixels in two latent cells of 8 pixels. A decoder smears an edit this far."""


def grow(mask: Tensor, pixels: int) -> Tensor:
    """The mask (B, H, W) with every value spread over a square that reaches `pixels` further on each side."""
    for dim in (1, 2):  # a square is separable, and two maxima of n pixels give the maximum of 2n
        mask, width = F.pad(mask, (0, 0, pixels, pixels) if dim == 1 else (pixels, pixels)), 1
        while width <= 2 * pixels:
            step = min(width, 2 * pixels + 1 - width)
            mask, width = torch.maximum(*(mask.narrow(dim, i, mask.shape[dim] - step) for i in (0, step))), width + step
    return mask


def background_mask(edit_mask: Tensor, grow_pixels: int = TWO_CELLS) -> Tensor:
    """1 where a picture must stay as it was: outside the edit mask (B, H, W), grown from every pixel above 0."""
    return (1 - grow((edit_mask > 0).byte(), grow_pixels)).float()
