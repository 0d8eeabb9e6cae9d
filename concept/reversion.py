"""ReVersion: Diffusion-Based Relation Inversion from Images. Huang, Wu, Jiang, Chan, Liu, SIGGRAPH Asia 2024.
arXiv:2303.13495

A relation, such as "is carved from", is learned from pictures of different things that stand in it. A caption names the
things with the new word <R> between them, "cat <R> stone". Language tells most relations by prepositions. So beside the
picture's loss <R> is steered towards some of these, P^l, drawn anew for each picture, and away from the words N^m of
the caption that name how things look:

    L_steer = -log( Σ_l exp(R·P^l / γ) / (Σ_l exp(R·P^l / γ) + Σ_m exp(R·N^m / γ)) ),    L = L_denoise + λ·L_steer,

of vectors of norm 1 in the table of tokens, with γ = 0.07 and λ = 0.01. As noisy levels decide what things do and clean
ones how they look, timesteps t are drawn with the probability

    f(t) = 1/T·(1 - α·cos(π t / T)),    α = 0.5.

Differs from the paper: words that are told apart as function words are a short list here. Two text encoders have a loss
each. On flow models T are the model's own levels.
Checked against: the paper's equations; its loss and levels beside ziqihuangg/ReVersion@df6855e on equal numbers. That
code's licence is for non-commercial use, and none of it is here.
"""
import re
from dataclasses import dataclass

import torch

from ..editing.concepts import SLOT, Objective
from ..editing.contrast import info_nce

PREPOSITIONS = tuple((
    "aboard about above across after against along alongside amid amidst among amongst anti around astride at atop "
    "before behind below beneath beside between beyond by down following from in including inside into near of off on "
    "onto opposite out outside over past regarding round through throughout to toward towards under underneath up upon "
    "versus with within").split())
OTHERS = frozenset((  # words that name nothing that is seen
    "a an the this that these those some any each both all no not and or but nor so than then as if while when where "
    "who whose which what there here i you he she it we they me him her us them my your his its our their am is are "
    "was were be been being has have had do does did can will would should may very too just only for like").split())
WEIGHT, TEMPERATURE, DRAWN, SKEW = 0.01, 0.07, 4, 0.5  # λ, γ, L, α


@dataclass(frozen=True)
class Steering(Objective):
    """near: the words of which the P^l are drawn.
    drawn: how many.
    weight: λ.
    temperature: γ.
    skew: α.
    """
    near: tuple[str, ...] = PREPOSITIONS
    drawn: int = DRAWN
    weight: float = WEIGHT
    temperature: float = TEMPERATURE
    skew: float = SKEW

    def contrasts(self, caption, generator):
        chosen = torch.randperm(len(self.near), generator=generator)[:self.drawn].tolist()
        return [(SLOT, " ".join(self.near[n] for n in chosen), " ".join(self.far(caption)))]

    def far(self, caption: str) -> list[str]:
        """The caption's words that name what is seen."""
        said = re.sub(r"embedding:[\w-]+|:[\d.]+(?=\))", " ", caption.lower())  # no learned word, no weight
        words = re.findall(r"\w[\w'-]*", said)
        return [word for word in words if word not in OTHERS.union(PREPOSITIONS, self.near)]

    def of_word(self, vectors, near, far):
        return self.weight * info_nce(vectors, near, far, self.temperature).mean()
