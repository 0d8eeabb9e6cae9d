"""The cross-attention maps of a caption's words, for objectives that compare them with masks while a concept learns."""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..host.network import resolutions
from ..host.tokens import tokenize
from .attention_loss import with_maps_recorded
from .rows import Row
from .word_maps import nearest_resolution


class Maps:
    """Of the down and up parts of a U-Net, at the resolution that an objective names."""

    def __init__(self, model, objective):
        self.objective = objective
        self.resolution = nearest_resolution(model, objective.resolution)
        self.addresses = [address for address, side in resolutions(model.model.diffusion_model).items()
                          if side == self.resolution and address[0] != "middle"]

    def recorded(self, options: dict, found: list) -> dict:
        """model_options under which a forward adds its maps to `found`."""
        return with_maps_recorded(options, self.addresses, found)

    def losses(self, rows: Sequence[Row], found: Sequence[Tensor]) -> Tensor:
        """[B] of rows, of the maps [B,heads,cells,keys] of their forward."""
        maps = torch.cat(list(found), 1).mean(1)
        maps = maps.unflatten(1, [math.ceil(side * self.resolution) for side in rows[0].x.shape[-2:]])
        return torch.stack([self.objective.of_maps(self._words(row, own), row.masks) for row, own in zip(rows, maps)])

    @staticmethod
    def _words(row: Row, maps: Tensor) -> Tensor:
        """[n,h',w'] of a row's words, of its maps [h',w',keys]. The host may repeat the tokens of a shorter text."""
        maps = maps.unflatten(-1, (-1, row.tokens)).sum(-2)
        return torch.stack([maps[..., list(word)].sum(-1) for word in row.words])


def positions(clip, caption: str, words: Sequence[str]) -> tuple:
    """(those of each word's tokens in a caption, how many tokens it has)."""
    tokens = tokenize(clip, caption)
    try:
        return tuple(tokens.find(word).positions for word in words), len(tokens.ids)
    except ValueError as error:
        raise ValueError(f"The attention of {' and '.join(words)} is compared with a mask, and the caption {caption!r} "
                         f"has the words {', '.join(word.name for word in tokens.named) or 'of no text'}: write * in "
                         "each caption that has a mask, and give an identifier of one word without signs, such as "
                         "sks.") from error
