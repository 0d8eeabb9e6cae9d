"""LEDITS++: Limitless Image Editing using Text-to-Image Models. Brack, Friedrich, Kornmeier, Tsaban, Schramowski,
Kersting, Passos, CVPR 2024. arXiv:2311.16711, the editing. (inversion/ledits.py holds its inversion.)

It is SEGA's guidance without momentum,
    γ = Σ s_e·M_e·ψ_e,   M_e = M¹·M²                                                          (Eq. 12)
where a concept's mask is the intersection of two:
    M¹: where its words' cross-attention in its own row reaches its λ-th percentile; the map is a mean over heads and
        layers at a quarter of the latent's side, summed over tokens and smoothed;
    M²: where |ψ_e|, summed over channels, reaches its own.

Differs from the paper: M¹ stands alone in the first fifth of the schedule (t > 800), and the smoothing is a Gaussian of
variance 1/2 on 3 × 3 places. Both are as in the authors' code (diffusers' LEditsPPPipelineStableDiffusion). Their SDXL
pipeline leaves M¹ out unless it is asked for. Here the masks are those of the paper on every model. Where attention
joins words and picture, the map is what the picture's tokens give to the words in the one softmax, at the layers where
words are read; ours, untuned.
Checked against: diffusers 0.42.1, whole runs. In joint attention: the equations, on explicit maps.
"""
from dataclasses import dataclass, field

import torch.nn.functional as F

from ..editing.masks import mask_for, smoothed
from ..editing.predictions import asked_by
from ..editing.sites import AttentionObserver
from ..editing.word_maps import on_whole_grid, word_maps
from .sega import SEGA, Concept, largest

ATTENTION_ALONE = 1 - 800.5 / 999  # percent of the schedule: t > 800


@dataclass(frozen=True, eq=False)
class Grounded(Concept):
    """A concept that is looked for by its words.

    tokens: the Tokens of its prompt's rows.
    """
    tokens: tuple = ()


@dataclass(frozen=True, eq=False)
class LEDITS(SEGA, AttentionObserver):
    """All concepts of a MODEL.

    resolution: of the grid whose cross-attention is read, its side over the latent's.
    layers: the addresses at which it is read, or None for all of the resolution.
    """
    momentum: float = 0.0
    beta: float = 0.0
    resolution: float = 0.25
    layers: frozenset | None = None
    roles, name = ("other",), "LEDITS++"

    @dataclass
    class State(SEGA.State):
        """maps: {a concept's number: [(maps [B, h, w] of its words, how often each place was seen) of a site]}.
        last: {a concept's number: the mean of those of its last forward}."""
        maps: dict = field(default_factory=dict)
        last: dict = field(default_factory=dict)

    def acts(self, run, site, sigma):
        return (site.kind == "cross" and site.resolution == self.resolution
                and (self.layers is None or site.address in self.layers))

    def observe(self, rows, site, q, k, v, attention):
        asked = asked_by(self, rows.entry)
        if asked is None:
            return
        tokens = self.concepts[asked].tokens
        words = [[sum((word.positions for word in t.words), ())] for t in tokens]
        maps = word_maps(attention, site, q, k, [words[i % len(words)] for i in range(rows.count)], len(tokens[0].ids),
                         rows.call.network)
        maps, seen = on_whole_grid(maps, rows, site)
        rows.call.run.state(self).maps.setdefault(asked, []).append((maps[:, 0], seen))

    def region(self, run, concept, psi, sigma):
        state, number = run.state(self), self.concepts.index(concept)
        if number in state.maps:  # EasyCache may have skipped the forward
            maps, seen = map(sum, zip(*state.maps.pop(number)))
            state.last[number] = maps / seen.clamp(min=1)
        maps = state.last[number]
        # M¹, at the nearest place
        attended = F.interpolate(largest(smoothed(maps)[:, None], concept.threshold), psi.shape[-2:])[:, 0]
        attended = mask_for(attended, psi)
        if not run.within(sigma, ATTENTION_ALONE, 1.0):
            return attended
        return attended * largest(psi.abs().sum(1, keepdim=True), concept.threshold)  # M¹·M²
