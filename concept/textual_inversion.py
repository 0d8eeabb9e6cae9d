"""An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion. Gal, Alaluf, Atzmon,
Patashnik, Bermano, Chechik, Cohen-Or, ICLR 2023. arXiv:2208.01618

A concept S* is a new word. Everything stays frozen but its vector v in the text encoder's table of tokens,

    v* = arg min E ‖ε - ε_θ(z_t, t, c_θ(y))‖²,    (Eq. 2)

where y is one of some neutral templates with S* in it. v begins as the vector of a word that says roughly what it is.

Differs from the paper: several vectors may stand for the word, as in the paper's appendix. The learning rate is
diffusers' 5e-4 for a batch of one; the paper's 5e-3 is multiplied by batch and devices. SDXL's two text encoders learn
a vector each.
Checked against: transformers and diffusers, a step of the vector through both; the file against the host's own loader.
"""
from dataclasses import dataclass

from ..editing.concepts import NewWord


@dataclass(frozen=True)
class TextualInversion(NewWord):
    """One word of some vectors."""
