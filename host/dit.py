"""The door to the host's transformers whose attention joins words and picture: Flux.1, Schnell, Kontext, Flux.2.

Words and picture look up each other there, in one softmax. Edits of self-attention see the picture's own tokens alone,
on their grid. What they compute for these looks up the words too, and a reference latent's tokens, as the host has
them; what these look up is left as it was. q and k are seen after the rotation that gives them their place.
"""
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from comfy.ldm.flux.model import Flux
from torch import Tensor

from .batch import chunks
from .options import WrappersMP, with_transformer, with_wrapper
from .unet import Attention, Shape

OVERRIDE, KEY = "optimized_attention_override", "palimpsest.joint"
SHAPE = "palimpsest.shape"    # the option with the Shape of a site, and of a forward before its heads are known
WORDS = "palimpsest.words"    # the option with the text's length in a forward
OTHERS = "palimpsest.others"  # the option with the keys and values of all but the picture's tokens, by chunk
LISTS = {"double": "double_blocks", "single": "single_blocks"}


def known(network) -> bool:
    """Whether it is of a family that this file knows."""
    return type(network) is Flux


def resolutions(network) -> dict[tuple, float]:
    """{address of every block: the side of its grid over the latent's}, in the order in which they run."""
    return {(name, i, 0): 1 / network.patch_size for name, blocks in LISTS.items()
            for i in range(len(getattr(network, blocks)))}


def with_attention(model_options: dict, wrap: Mapping[Attention, Callable]) -> dict:
    """As unet.py's; q, k and v are the picture's tokens."""
    before = model_options["transformer_options"].get(OVERRIDE)
    around = {at.address: function for at, function in wrap.items()}

    def override(func, q, k, v, heads, *args, **kwargs):
        def compute(q, k, v):
            return (partial(before, func) if before else func)(q, k, v, heads, *args, **kwargs)

        options = kwargs.get("transformer_options") or {}
        if WORDS not in options:
            return compute(q, k, v)
        if "block_index" not in options:
            raise ValueError("This ComfyUI does not tell a block's number to attention, and the editors on this MODEL "
                             "choose by it: update ComfyUI to 0.30 or later.")
        function = around.get((options["block_type"], options["block_index"], 0))
        if function is None:
            return compute(q, k, v)
        if (args[0] if args else kwargs.get("mask")) is not None:
            raise ValueError("Another node gives attention a mask over words and picture, and the editors on this "
                             f"MODEL move some of its {k.shape[2]} keys: remove that node.")
        return _joint(function, compute, q, k, v, heads, options)

    model_options = with_transformer(model_options, **{OVERRIDE: override})
    return with_wrapper(model_options, WrappersMP.APPLY_MODEL, KEY, _told)


def _told(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
    """One forward of the host's apply_model, whose options tell its attention where words and picture are."""
    patch = executor.class_obj.diffusion_model.patch_size
    grid = tuple(-(-side // patch) for side in x.shape[-2:])
    options = {**options, WORDS: c_crossattn.shape[1], SHAPE: Shape(len(x), grid, 0)}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _joint(function, compute, q: Tensor, k: Tensor, v: Tensor, heads: int, options: dict) -> Tensor:
    """The output [rows, tokens, channels] of joint attention on q, k, v [rows, heads, tokens, width].

    function(inner) computes the picture's part."""
    start, shape = options[WORDS], options[SHAPE]
    end = start + math.prod(shape.grid)
    if q.shape[2] < end or q.shape[0] != shape.rows:
        raise ValueError(f"Attention has {q.shape[0]} rows of {q.shape[2]} tokens, where {start} words and a grid of "
                         f"{shape.grid[0]} x {shape.grid[1]} were expected in {shape.rows}: another node changes the "
                         "tokens; remove it.")
    own = [_flat(x[:, :, start:end]) for x in (q, k, v)]
    others = [torch.cat([x[:, :, :start], x[:, :, end:]], 2) for x in (q, k, v)]
    whole = []

    def inner(q_, k_, v_, options):
        if all(a is b for a, b in zip((q_, k_, v_), own)):  # nothing is edited: the host's own call
            whole.append(compute(q, k, v))
            return whole[-1][:, start:end]
        keys, values = (torch.cat(x) for x in zip(*(options[OTHERS][chunk] for chunk in chunks(options))))
        if len(q_) != len(keys):
            raise ValueError(f"An editor shows joint attention {len(q_)} of {len(keys)} rows at a time, as it does "
                             "with a mask for each: give it one mask for all rows.")
        return compute(_split(q_, heads), torch.cat([keys, _split(k_, heads)], 2),
                       torch.cat([values, _split(v_, heads)], 2))

    parts = chunks(options)
    if len(set(parts)) < len(parts):
        raise ValueError(f"The target has areas, {len(parts)} of them in a forward, and this MODEL's attention knows "
                         "each token's place in the whole: remove Conditioning (Set Area).")
    shared = dict(zip(parts, zip(*(x.chunk(len(parts)) for x in others[1:]))))
    out = function(inner)(*own, {**options, SHAPE: shape._replace(heads=heads), OTHERS: shared})
    rest = whole[-1] if whole else compute(others[0], k, v)
    after = end if whole else start
    return torch.cat([rest[:, :start], out, rest[:, after:]], 1)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
