"""Multi-Concept Customization of Text-to-Image Diffusion. Kumari, Zhang, Zhang, Shechtman, Zhu, CVPR 2023.
arXiv:2212.04488

Of all weights those of cross-attention change most in fine-tuning. So only W_k and W_v learn, which map the text to
keys and values (section 3.2), together with a new word V* before the class noun, and pictures of the class as
regularisation. Pictures are shown at random sizes, with words for it before their captions, and what the smaller ones
do not cover is not learned (section 4, Training details).

Differs from the paper: its class pictures are real ones, found by their captions; here they may be the model's own, as
its ablation and diffusers' script have it. Concepts are joined by loading two files; the constrained merge (Eq. 4 to 6)
is not built. The random sizes are drawn before learning, some for each picture, in place of one at every step. ΔW is
learned, from 0. The start token's keys and values learn with the others, where diffusers stops their gradient.
Checked against: diffusers' train_custom_diffusion.py, its loss with the prior and its processors' gradients with the
start token's added; Prompt-to-Prompt with what was learned; the authors' code (adobe-research/custom-diffusion@7c19c9a)
for sizes, places, words and the cells that are learned.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.concepts import WholeChange

AFAR, NEAR = ("a far away", "very small"), ("zoomed in", "close up")
GREY = 0.5
LEAST = 4  # cells of the latent, of a smaller picture's shorter side


@dataclass(frozen=True)
class KeysAndValues(WholeChange):
    """W_k and W_v of cross-attention."""
    lr: float

    def takes(self, name, weight):
        return name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def at_a_random_size(picture: Tensor, mask: Tensor, cell: int, generator: torch.Generator) -> tuple:
    """(picture [H,W,C], mask [H,W], words): as it is, smaller on grey, or larger and cropped; where it is learned; and
    what its caption says of that, if anything.

    picture: [H,W,C], in [0,1].
    mask: [H,W], where it is learned as it is.
    cell: pixels that the VAE makes one of. Of a smaller picture whole cells are learned, without those at its edges,
        which the VAE mixes with what is around.
    """
    def drawn(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    def one_of(things):
        return things[int(torch.randint(len(things), (), generator=generator))]

    sides = picture.shape[:2]
    least = LEAST * cell / min(sides)
    scale = min(1, max(least, drawn(1 / 3, 1))) if drawn(0, 3) < 2 else drawn(1.2, 1.4)
    if 0.6 <= scale <= 1:
        return picture, mask, ""
    scaled = [round(scale * side) for side in sides]
    both = torch.cat([picture, mask[..., None]], -1).movedim(-1, 0)[None]
    both = F.interpolate(both, size=scaled, mode="bicubic", antialias=True)[0].movedim(0, -1).clamp(0, 1)
    y, x = (int(drawn(0, abs(side - new) + 1)) for side, new in zip(sides, scaled))
    if scale > 1:
        both = both[y:y + sides[0], x:x + sides[1]]
        return both[..., :-1], both[..., -1], one_of(NEAR)
    canvas, area = torch.full_like(picture, GREY), torch.zeros_like(mask)
    canvas[y:y + scaled[0], x:x + scaled[1]] = both[..., :-1]
    rows, columns = (slice((at // cell + 1) * cell, ((at + new) // cell - 1) * cell)
                     for at, new in zip((y, x), scaled))
    area[rows, columns] = both[rows.start - y:rows.stop - y, columns.start - x:columns.stop - x, -1]
    return canvas, area, one_of(AFAR)
