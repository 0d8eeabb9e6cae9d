"""ProSpect: Prompt Spectrum for Attribute-Aware Personalization of Diffusion Models. Zhang, Dong, Tang, Huang, Huang,
Ma, Lee, Deussen, Xu, ACM Transactions on Graphics 2023. arXiv:2305.16225

Sampling goes from coarse to fine: layout first, then content, then material and style. So a prompt in the space P* is
one for each of ten stages of 100 timesteps, {p_1, …, p_10}, p_1 where sampling begins. A picture is learned there as a
new word with a vector for each stage,

    {v_i}* = arg min E ‖ε - ε_θ(z_t, t, p_i(v_i))‖²,    i = 10 - ⌊10·t / 1000⌋,

and an attribute is taken from it by the word in some stages and other words in the rest.

Differs from the paper: the vectors learn themselves. The authors' code learns the weights of a small transformer with
dropout that makes the ten of the word that they begin with. A stage begins half a timestep before its first one.
Checked against: zyxElsa/ProSpect@31314f18b63abd3b7629722de51c52f2f129d241 (Apache-2.0), which stage a timestep reads;
the paper's equation, on diffusers' network.
"""
from dataclasses import dataclass
from typing import ClassVar

from ..editing.word_spaces import WordSpace


@dataclass(frozen=True)
class PromptSpectrum(WordSpace):
    """One word of each stage."""
    stages: ClassVar[int] = 10
