"""P+: Extended Textual Conditioning in Text-to-Image Generation. Voynov, Chu, Cohen-Or, Aberman, 2023. arXiv:2303.09522

A prompt in the space P says the same to every cross-attention of the U-Net. A prompt in P+ is one for each of them,
{p_1, …, p_n}. Coarse layers take shape and layout from it, fine ones colour and texture. Extended Textual Inversion
(XTI) learns a concept there, as a new word with a vector e_i for each layer:

    {e_i}* = arg min E ‖ε - ε_θ(z_t, t, {p_1(e_1), …, p_n(e_n)})‖².

All vectors begin as the one of a word that says roughly what it is. With equal vectors it is Textual Inversion.

Differs from the paper: without its optional term that draws the vectors to where the table of tokens is dense. The
layers of one transformer share a vector; SD1.x has one layer in each of its 16, SDXL 70 in 11. SDXL's pooled text,
which the paper's model has not, is one for the whole network: that of the first layer, p_1.
Checked against: the paper's equation; which layer reads which prompt, against the order of
NeuralTextualInversion/NeTI@28edf306f9584b3b4f6dd6f37e603e70f445462b, on diffusers' network.
"""
from dataclasses import dataclass
from typing import ClassVar

from ..editing.word_spaces import WordSpace


@dataclass(frozen=True)
class ExtendedTextualInversion(WordSpace):
    """One word of each layer."""
    in_layers: ClassVar[bool] = True
