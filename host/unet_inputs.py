"""Adds tensors to what the attention of the host's U-Net reads, before its projections."""
from functools import partial

import torch
from comfy.utils import repeat_to_batch_size

from .tiles import keys


def with_added(model_options, value=None, contents={}, takes=None, scale=None) -> dict:
    """model_options whose U-Net adds `value` [B,tokens,C] to what cross-attention takes its values from, once that is
    multiplied by a `scale` [B,tokens,C], and contents {(section, block, depth): [B,2,places,C]} to what self-attention
    takes its keys and
    values from: in the chunks of a forward of which takes("value" or "content", its `cond_or_uncond`, its uuid) says
    so, or in all."""
    def cross(n, context, held, options):
        return n, context, _plus(held, value, options, takes and partial(takes, "value"), scale)

    def own(n, context, held, options):
        content = contents.get(_place(options))
        if content is None:
            return n, context, held
        return n, *(_plus(x, c, options, takes and partial(takes, "content"))
                    for x, c in zip((context, held), content.unbind(1)))

    return _patched(model_options, attn2_patch=None if value is None else cross, attn1_patch=own if contents else None)


def with_widths_measured(model_options, found) -> dict:
    """model_options under which a forward writes (places, width) of what self-attention reads to `found`, by (section,
    block, depth)."""
    def own(n, context, held, options):
        found[_place(options)] = tuple(context.shape[1:])
        return n, context, held

    return _patched(model_options, attn1_patch=own)


def _place(options) -> tuple:
    return (*options["block"], options.get("block_index", 0))


def _patched(model_options, **patches):
    to = model_options["transformer_options"]
    held = to.get("patches", {})
    added = {slot: [*held.get(slot, ()), patch] for slot, patch in patches.items() if patch}
    return {**model_options, "transformer_options": {**to, "patches": {**held, **added}}}


def _plus(x, learned, options, takes, scale=None):
    """x [rows,tokens,C], scaled or not, with what was learned [B,tokens,C] added; the host may repeat a text's
    tokens."""
    if x.shape[1] % learned.shape[1] or x.shape[2] != learned.shape[2]:
        raise ValueError(f"What was learned is {list(learned.shape[1:])} (tokens, width), attention reads "
                         f"{list(x.shape[1:])}: remove what cuts the picture into tiles, and sample at the size of the "
                         "inversion.")
    chunks = [()] if takes is None else keys(options)
    parts = []
    for chunk, part in zip(chunks, x.chunk(len(chunks))):
        if takes is None or takes(*chunk):
            def rows(t):
                return repeat_to_batch_size(t, part.shape[0]).repeat(1, part.shape[1] // t.shape[1], 1).to(part)
            part = (part if scale is None else part * rows(scale)) + rows(learned)
        parts.append(part)
    return torch.cat(parts)
