"""Highly Personalized Text Embedding for Image Manipulation by Stable Diffusion. Han, Yang, Kwon, Ye, 2023.
arXiv:2303.08767

The encoded prompt of one picture has rows for its words and, after them, rows that say nothing. The last N of these,
the HiPer embedding, learn the picture; the words' rows e_src and the network stay:

    e_hper = arg min E ‖ε - ε_θ(x_t, t, [e_src, e_hper])‖².

The edit samples [e_tgt, e_hper], the target prompt with the same rows at its end.

Differs from the paper: SDXL's pooled text stays the prompt's own.
Checked against: the paper's equation; the settings are those of HiPer0/HiPer, whose code has no licence.
"""
from ..editing.concepts import PromptRows

ROWS = 5  # N
SCALE = 0.8  # of e_hper in the authors' edits


def rows_of(conditioning: list, target: list, rows: int, scale: float) -> list:
    """[e_tgt, e_hper] as a CONDITIONING. conditioning: the learned one."""
    learned, (wanted, _) = conditioning[0][0], target[0]
    return PromptRows(target, 0.0).told(scale * learned[:, -rows:].to(wanted))
