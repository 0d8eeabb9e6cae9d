"""DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation. Ruiz, Li, Jampani, Pritch,
Rubinstein, Aberman, CVPR 2023. arXiv:2208.12242

Three to five pictures of a subject, each captioned "a [identifier] [class noun]" with an identifier that is a rare
token, fine-tune all weights θ. So that the class keeps its meaning and its variety, pictures x_pr of "a [class noun]"
that the frozen model made are learned with them (class-prior preservation, Eq. 2):

    E[ w_t ‖x̂_θ(α_t x + σ_t ε, c) - x‖² + λ w_t' ‖x̂_θ(α_t' x_pr + σ_t' ε', c_pr) - x_pr‖² ],    λ = 1.

The second term is `Prior` (editing/concepts.py); the loop adds it (editing/learning.py).

Differs from the paper: w_t is what makes the loss that of ε, as in diffusers' script, whose rates are the defaults. The
text encoder stays frozen unless asked. The autoencoder is not touched.
Checked against: diffusers' train_dreambooth.py, its loss with and without the prior; the text encoder's gradients
against transformers'.
"""
from dataclasses import dataclass

from ..editing.concepts import WholeChange

RARE = "sks"  # a rare token of CLIP, diffusers' identifier


@dataclass(frozen=True)
class AllWeights(WholeChange):
    """Every weight of the network: ΔW itself learns."""
    lr: float
    text_encoder: bool = False

    def takes(self, name, weight):
        return True
