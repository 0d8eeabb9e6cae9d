"""Adds tensors to what the attention of the host's U-Net reads, before its projections."""
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from .batch import Chunk, repeat_to_batch_size, split
from .options import with_patches
from .unet import address_of


def with_added(model_options: dict, value: Tensor | None = None, contents: Mapping[tuple, Tensor] | None = None,
               takes: Callable[[str, Chunk], bool] = lambda what, chunk: True, scale: Tensor | None = None) -> dict:
    """model_options whose U-Net adds tensors to what its attention reads.

    value: [B,tokens,C], added to what cross-attention takes its values from.
    scale: [B,tokens,C], by which that is multiplied first.
    contents: {address: [B,2,tokens,C]}, added to what self-attention takes its keys and its values from.
    takes: takes("value" or "content", chunk) says which chunks of a forward get them.
    """
    contents = contents or {}

    def cross(n, context, held, options):
        return n, context, _added(held, value, options, partial(takes, "value"), scale)

    def own(n, context, held, options):
        content = contents.get(address_of(options))
        if content is None:
            return n, context, held
        return n, *(_added(x, c, options, partial(takes, "content"))
                    for x, c in zip((context, held), content.unbind(1)))

    patches = {} if value is None else {"attn2_patch": cross}
    return with_patches(model_options, **patches, **({"attn1_patch": own} if contents else {}))


def with_value_inputs(model_options: dict, change: Callable[[Tensor, dict], Tensor]) -> dict:
    """model_options whose U-Net takes the values of cross-attention from change(what it took them from, options)."""
    def cross(n, context, held, options):
        return n, context, change(held, options)

    return with_patches(model_options, attn2_patch=cross)


def with_widths_measured(model_options: dict, widths: dict) -> dict:
    """model_options under which a forward writes what each self-attention reads to `widths`,
    {address: (tokens, width)}."""
    def own(n, context, held, options):
        widths[address_of(options)] = tuple(context.shape[1:])
        return n, context, held

    return with_patches(model_options, attn1_patch=own)


def _added(x, learned, options, takes, scale=None) -> Tensor:
    """x [rows,tokens,C], optionally scaled, plus what was learned [B,tokens,C]. The host may repeat a text's tokens."""
    if x.shape[1] % learned.shape[1] or x.shape[2] != learned.shape[2]:
        raise ValueError(f"What was learned is {list(learned.shape[1:])} (tokens, width), attention reads "
                         f"{list(x.shape[1:])}: remove what cuts the picture into tiles, and sample at the size of the "
                         "inversion.")
    parts = []
    for chunk, part in split(options, x):
        if takes(chunk):
            part = (part if scale is None else part * _as_rows(scale, part)) + _as_rows(learned, part)
        parts.append(part)
    return torch.cat(parts)


def _as_rows(learned, part) -> Tensor:
    """What was learned [B,tokens,C], for the rows and tokens of a part of a forward."""
    return repeat_to_batch_size(learned, len(part)).repeat(1, part.shape[1] // learned.shape[1], 1).to(part)
