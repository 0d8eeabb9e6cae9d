"""Break-A-Scene: Extracting Multiple Concepts from a Single Image. Avrahami, Aberman, Fried, Cohen-Or, Lischinski,
SIGGRAPH Asia 2023. arXiv:2305.16311

One picture with several things, a mask M_i and a new word v_i of each. Union sampling: every step draws some of the
things, s, and learns the caption "a photo of v_x and … v_y" where the union M_s of their masks shows it,

    L_rec = E ‖ε ⊙ M_s - ε_θ(z_t, t, p_s) ⊙ M_s‖².

So that a word means one thing alone, its cross-attention CA_θ, the mean of the layers and heads at a quarter of the
latent's side, is drawn to its mask:

    L_attn = E Σ_i ‖CA_θ(v_i, z_t) - M_i‖²,    L = L_rec + λ·L_attn,    λ = 0.01,

with the map divided by its largest value. The words learn first at a high rate, then the weights at a low one.

Differs from the paper: in the second phase the words stay as they were learned, as a LoRA file does not hold them. Not
every step draws the things anew: every set of them is a picture of its own, and those sets that are drawn more often
stand there more often.
Checked against: google/break-a-scene@b142cf2, its losses line by line on equal predictions and maps, and the law of its
draws.
"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch.nn.functional as F

from ..editing.concepts import Objective

WEIGHT = 0.01  # λ


@dataclass(frozen=True)
class MaskAttention(Objective):
    """weight: λ."""
    weight: float = WEIGHT
    resolution = 0.25

    def of_maps(self, maps, masks):
        masks = F.interpolate(masks[:, None], size=maps.shape[1:])[:, 0]
        return self.weight * (maps / maps.amax((1, 2), keepdim=True) - masks).square().mean((1, 2)).sum()


def unions(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Sets of the words, each as often as it is drawn: their number is uniform, then the set of that number."""
    counts = [math.comb(len(words), number) for number in range(1, len(words) + 1)]
    for number, count in enumerate(counts, 1):
        for chosen in combinations(words, number):
            yield from [chosen] * (math.lcm(*counts) // count)


def caption(words: Sequence[str]) -> str:
    return "a photo of " + " and ".join(words)
