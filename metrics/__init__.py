"""Measures of an edit. Pictures are (B, H, W, C) and masks (B, H, W), both in 0..1. A mask is 1 where the edit is."""
from .edits import CHANGED, edit_numbers, edit_scores, ideal_edit
from .masks import TWO_CELLS, background_mask, grow
from .pixels import changed_share, mse, pie_mse, pie_psnr, pie_ssim, psnr, ssim

__all__ = ["CHANGED", "TWO_CELLS", "background_mask", "changed_share", "edit_numbers", "edit_scores", "grow",
           "ideal_edit", "mse", "pie_mse", "pie_psnr", "pie_ssim", "psnr", "ssim"]
