"""Lego: Learning to Disentangle and Invert Personalized Concepts Beyond Object Appearance in Text-to-Image Diffusion
Models. Motamed, Paudel, Van Gool, ECCV 2024. arXiv:2311.13833

What a thing does or what happens to it, such as being frozen in ice, is entangled with the thing in its pictures. So
the subject is learned apart (subject separation): its own pictures have captions with the word of the subject alone,
and the pictures of the concept have both words. And the concept's vectors v are drawn towards known words P that tell
it and away from words N that mean the opposite (context loss),

    L = L_denoise + λ·L_context,    L_context = -log( Σ_P exp(v·P / γ) / (Σ_P exp(v·P / γ) + Σ_N exp(v·N / γ)) ),

with vectors of norm 1 in the table of tokens. A concept may have several vectors.

Differs from the paper: λ and γ are those of ReVersion, whose loss it takes over. The words are written by hand, one
set of them for all vectors.
Checked against: reconstructed from its abstract and a survey's account; the authors' repository holds no code.
"""
from dataclasses import dataclass

from ..editing.concepts import Objective
from ..editing.contrast import info_nce

WEIGHT, TEMPERATURE = 0.01, 0.07  # λ, γ


@dataclass(frozen=True)
class ContextLoss(Objective):
    """word: the concept's name.
    near, far: P and N.
    weight: λ.
    temperature: γ.
    """
    word: str
    near: str
    far: str
    weight: float = WEIGHT
    temperature: float = TEMPERATURE

    def contrasts(self, caption, generator):
        return [(self.word, self.near, self.far)]

    def of_word(self, vectors, near, far):
        return self.weight * info_nce(vectors, near, far, self.temperature).mean()
