"""Concept Decomposition for Visual Exploration and Inspiration. Vinker, Voynov, Cohen-Or, Shamir, ACM Transactions on
Graphics (SIGGRAPH Asia) 2023. arXiv:2305.18203

A concept is split into two aspects that no word names. Two new words v_l and v_r learn together, side by side in one
prompt such as "a photo of v_l v_r", from some ten pictures of the concept:

    {v_l, v_r} = arg min E ‖ε - ε_θ(z_t, t, c(y(v_l, v_r)))‖².

Both begin as "object". Each alone then gives an aspect of it, and goes into prompts with other words. Pictures of one
of them may be split in turn, which makes a tree. Noisy timesteps are drawn more often, with the probability
1/T·(1 - α·cos(π t / T)), α = 0.5.

Differs from the paper: it learns 200 steps with each of four seeds and goes on with the one whose aspects are the most
consistent in themselves and the least alike, by CLIP's features of their pictures. Here the seeds are compared by eye.
Checked against: google/inspiration_tree@c31fd88 (Apache-2.0), its levels, and the loss of two words on diffusers'
network.
"""
from dataclasses import dataclass

from ..editing.concepts import Objective

ENDINGS = "-1", "-2"  # of the words' names
LIKE, SKEW = "object", 0.5


@dataclass(frozen=True)
class TwoAspects(Objective):
    """reads: v_l v_r, what * reads as.
    skew: α.
    """
    reads: str
    skew: float = SKEW
