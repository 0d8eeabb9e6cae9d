"""A prompt that reads otherwise in each transformer of a U-Net, as a CONDITIONING for any node that takes one.

What L transformers read lies in one embedding, side by side for each token: number l reads embedding[:, l::L]. That
stays so where the host repeats the whole, to let prompts of two lengths share a forward. One of the host's hooks on the
CONDITIONING picks in each cross-attention what is its own; other prompts of a run do not have it.
"""
from functools import cache, partial

from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook, set_hooks_for_conditioning
from torch import Tensor

from .unet import resolutions

Place = tuple[str, int]  # (section, block) of a transformer, as the host counts


def transformers(unet) -> tuple[Place, ...]:
    """Every transformer with cross-attention, in the order in which they run."""
    return tuple(dict.fromkeys((section, block) for section, block, _ in resolutions(unet)))


def layered(rows: Tensor, extras: dict, places: tuple[Place, ...]) -> list:
    """A CONDITIONING of one entry, of what each of the places reads: [L,T,C]."""
    side_by_side = rows.transpose(0, 1).flatten(0, 1)[None]
    return set_hooks_for_conditioning([[side_by_side, extras]], _picking(places, side_by_side.shape[1]))


@cache  # prompts with the same hooks share a forward
def _picking(places, length) -> HookGroup:
    group, patch = HookGroup(), partial(_picked, {place: n for n, place in enumerate(places)}, length)
    options: dict = {"patches": {"attn2_patch": [patch]}}
    group.add(TransformerOptionsHook(options, EnumHookScope.HookedOnly))
    return group


def _picked(numbers, length, x, context, value, options):
    number, count = numbers.get(tuple(options["block"])), len(numbers)
    if number is None:
        raise ValueError(f"The prompt has rows for {count} transformers, and {options['block']} of this MODEL is none "
                         "of them: sample with a MODEL of the family that the concept was learned on.")
    if context.shape[1] % length:
        raise ValueError(f"The prompt for {count} transformers had {length} rows and has {context.shape[1]} now: "
                         "remove Conditioning (Concat) from it.")
    return x, context[:, number::count], value[:, number::count]
