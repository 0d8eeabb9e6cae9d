"""The ATTENTION value: where a model sees words in a picture."""
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..editing.masks import SourceMask, word_mask
from ..host.tokens import Tokens, Word
from .alignment import PromptEdit


@dataclass(frozen=True, eq=False)
class Attention:
    """The ATTENTION value.

    tokens: the words that have maps, one a picture: the source's Tokens, or concepts that need not stand in it.
    steps: [S, B, words, h, w] float32 on the CPU, the probability that a place gives to each word at each level. Words
        stand as in Tokens.named.
    levels: the σ of the steps.
    latent: the latent's (height, width).
    resolution: h / height.
    fine: the resolution of the refined maps.
    refined: [B, words, h', w'], their mean over steps. None where another node cuts self-attention into tiles.
    edit: the PROMPT_EDIT whose source they show.
    layers: the addresses of the attention that shows them, or None for all of the resolution.
    source: the source's Tokens, where `tokens` are concepts.
    """
    tokens: tuple[Tokens, ...]
    steps: Tensor
    levels: tuple[float, ...]
    latent: tuple[int, int]
    resolution: float
    fine: float
    refined: Tensor | None
    edit: PromptEdit | None = None
    layers: frozenset | None = None
    source: tuple[Tokens, ...] | None = None

    @cached_property
    def maps(self) -> Tensor:
        """[B, words, h, w], the mean over steps."""
        return self.steps.mean(0)

    def map(self, picture: int, words: list[Word], refined=False) -> Tensor:
        """[h, w]: the summed map of some words of this picture's Tokens. More rows than pictures take turns."""
        maps = self.chosen(refined)
        return maps[picture % len(maps), self.columns(picture, words)].sum(0)

    def chosen(self, refined: bool) -> Tensor:
        """The maps, refined or as they are."""
        if not refined:
            return self.maps
        if self.refined is None:
            raise ValueError("The ATTENTION has no refined maps, since self-attention was cut into tiles: "
                             "remove HyperTile before Attention Store, or turn refine off.")
        return self.refined

    def mask(self, words: list[list[Word]], size, threshold, refined: bool) -> Tensor:
        """[B, h, w] of `word_mask`, of some words of each picture."""
        maps = torch.stack([self.map(i, found, refined) for i, found in enumerate(words)])
        return word_mask(maps, size, threshold, refined)

    def masks(self, words: list[list[Word]], size, threshold, refined: bool, grow=True) -> SourceMask:
        """The SourceMask of some words of each picture: the refined mask at every level, or each level's
        mask of the maps so far."""
        if refined:
            return SourceMask((math.inf,), self.mask(words, size, threshold, True)[None])
        so_far = self.steps.cumsum(0) / torch.arange(1, len(self.steps) + 1).view(-1, 1, 1, 1, 1)
        maps = torch.stack([so_far[:, i % so_far.shape[1], self.columns(i, found)].sum(1)
                            for i, found in enumerate(words)], 1)
        return SourceMask(self.levels, word_mask(maps.flatten(0, 1), size, threshold,
                                                 grow=grow).unflatten(0, maps.shape[:2]))

    def columns(self, picture: int, words: list[Word]) -> list[int]:
        """Which of a picture's maps are those of some words. A Word may be all occurrences of one."""
        wanted = {position for word in words for position in word.positions}
        return [i for i, word in enumerate(self.tokens[picture % len(self.tokens)].named)
                if wanted.issuperset(word.positions)]
