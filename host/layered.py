"""A prompt that reads otherwise in each transformer of a U-Net, as a CONDITIONING for any node that takes one.

What L transformers read lies in one embedding, side by side for each token: number l reads embedding[:, l::L], or its
keys [:, l::2L] and its values [:, l+L::2L]. That stays so where the host repeats the whole, to let prompts of two
lengths share a forward. One of the host's hooks on the CONDITIONING picks in each cross-attention what is its own;
other prompts of a run do not have it.
"""
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import torch
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook, set_hooks_for_conditioning
from torch import Tensor

from .concept_files import tables
from .unet import resolutions

Place = tuple[str, int]  # (section, block) of a transformer, as the host counts


def transformers(unet) -> tuple[Place, ...]:
    """Every transformer with cross-attention, in the order in which they run."""
    return tuple(dict.fromkeys((section, block) for section, block, _ in resolutions(unet)))


def layered(rows: Tensor, extras: dict, places: tuple[Place, ...]) -> list:
    """A CONDITIONING of one entry, of what each of the L places reads: [L,T,C], or [2L,T,C] with the values' after the
    keys'. A ControlNet, which has other places, reads their mean."""
    side_by_side = rows.transpose(0, 1).flatten(0, 1)[None]
    extras = {**extras, "cross_attn_controlnet": rows[:len(places)].mean(0, keepdim=True)}
    return set_hooks_for_conditioning([[side_by_side, extras]], _picking(places, len(rows), side_by_side.shape[1]))


@cache  # prompts with the same hooks share a forward
def _picking(places, count, length) -> HookGroup:
    group, patch = HookGroup(), partial(_picked, {place: n for n, place in enumerate(places)}, count, length)
    options: dict = {"patches": {"attn2_patch": [patch]}}
    group.add(TransformerOptionsHook(options, EnumHookScope.HookedOnly))
    return group


def _picked(numbers, count, length, x, context, value, options):
    number = numbers.get(tuple(options["block"]))
    if number is None:
        raise ValueError(f"The prompt has rows for {len(numbers)} transformers, and {options['block']} of this MODEL "
                         "is none of them: sample with a MODEL of the family that the concept was learned on.")
    if context.shape[1] % length:
        raise ValueError(f"The prompt for {len(numbers)} transformers had {length} rows and has {context.shape[1]} "
                         "now: remove Conditioning (Concat) from it.")
    return x, context[:, number::count], value[:, number + count - len(numbers)::count]


@contextmanager
def added(clip, offsets: Mapping[str, Tensor]):
    """While it lasts, the CLIP's last normalisation takes x + offset·‖x‖ for x.

    offsets: {encoder: [rows,T,C]} of the rows that are encoded together. The host may append a row, an empty prompt."""
    def put(offset, module, args):
        x = args[0]
        more = torch.nn.functional.pad(offset, (0, 0, 0, 0, 0, len(x) - len(offset)))
        return x + more.to(x) * x.norm(dim=-1, keepdim=True), *args[1:]

    with ExitStack() as stack:
        for encoder, offset in offsets.items():
            last = tables(clip)[encoder][1].transformer.text_model.final_layer_norm
            stack.callback(last.register_forward_pre_hook(partial(put, offset)).remove)
        yield
