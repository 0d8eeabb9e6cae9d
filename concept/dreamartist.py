"""DreamArtist: Towards Controllable One-Shot Text-to-Image Generation via Positive-Negative Adapter. Dong, Wei, Lin,
2022. arXiv:2211.11337

One picture. Two words learn together, S*_p in the prompt and S*_n in the negative prompt, through the guided prediction

    ε̂ = ε_θ(z_t, S*_n) + γ·(ε_θ(z_t, S*_p) - ε_θ(z_t, S*_n)),

whose loss is ‖ε - ε̂‖². The positive word may say the picture boldly; the negative one takes back what is wrong with it.
So one picture is learned without being copied. Both are used together, at a guidance of about γ.

Differs from the paper: its loss of the decoded picture is left out, which needs the decoder's gradient in each step
(the authors' program has it as an option). The negative word begins as the positive one does; the authors add noise of
0.001 to it.
Checked against: 7eu7d7/DreamArtist-stable-diffusion@60b4dae, its guided loss on equal predictions; the settings are
those of its table. The repository has no licence.
"""
from dataclasses import dataclass

from ..editing.concepts import Objective

SCALE = 5.0  # γ
ENDING = "-neg"  # of the negative word's name


@dataclass(frozen=True)
class PositiveNegative(Objective):
    """negative: the text of S*_n, which stands where S*_p stands in the caption.
    scale: γ.
    """
    negative: str
    scale: float = SCALE

    def guided(self, shown, negative):
        return negative + self.scale * (shown - negative)
