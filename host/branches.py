"""What the last branch of a block adds to the picture's tokens, in transformers made of Flux's blocks.

In a double block that is the MLP behind attention, in a single block the whole of it, each times its gate. A hook keeps
what the branch is added to, another sees the sum. Both live for one forward. Flux's blocks write in place, so what is
kept is a copy.
"""
from collections.abc import Callable, Mapping
from functools import partial

import comfy.ldm.chroma.layers
import comfy.ldm.flux.layers
import torch
from torch import nn

from . import dit
from .options import WrappersMP, with_hooks, with_wrapper

KEY = "palimpsest.branches"
LAYERS = comfy.ldm.flux.layers, comfy.ldm.chroma.layers  # Chroma has its own blocks, of the same parts, on 0.3.64
DOUBLE, SINGLE = (tuple(filter(None, (getattr(part, f"{name}StreamBlock") for part in LAYERS)))
                  for name in ("Double", "Single"))


def branches(network: nn.Module) -> frozenset:
    """The addresses of the blocks whose branch is known."""
    return frozenset((*at, 0) for at, _ in _blocks(network))


def _blocks(network):
    return [(at, block) for at, block in (dit.blocks(network) if dit.known(network) else ())
            if isinstance(block, DOUBLE + SINGLE)]


def with_branches(model_options: dict, edits: Mapping[tuple, Callable]) -> dict:
    """model_options under which edits(added, grid, options) of some addresses give what is added there, or None where
    it stays. added: [rows, tokens, channels] of the picture's tokens on their grid."""
    def register(network, options):
        for at, block in _blocks(network):
            edit, given = edits.get((*at, 0)), {}
            if edit:
                before = block.img_norm2 if isinstance(block, DOUBLE) else block
                yield before.register_forward_pre_hook(partial(_keep, given))
                yield block.register_forward_hook(partial(_add, given, edit), with_kwargs=True)

    model_options = with_wrapper(model_options, WrappersMP.APPLY_MODEL, dit.KEY, dit.told)
    return with_hooks(model_options, KEY, register)


def _keep(given, module, inputs):
    given["before"] = inputs[0].clone()


def _add(given, edit, block, inputs, kwargs, out):
    """A block's output, with another sum of the picture's tokens where the edit says so."""
    options = kwargs["transformer_options"]  # the host counts a reference latent's tokens in these, of its own
    whole, *words = out if isinstance(out, tuple) else (out,)
    count = sum(x.shape[1] for x in words)  # single blocks have them among all tokens
    start, end = (i - count for i in dit.place(count + whole.shape[1], options))
    before = given.pop("before")[:, start:end]
    added = edit(whole[:, start:end] - before, options[dit.SHAPE].grid, options)
    if added is None:
        return None
    whole = torch.cat([whole[:, :start], before + added, whole[:, end:]], 1)
    return (whole, *words) if words else whole
