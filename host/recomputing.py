"""Blocks of a network that forget what their backward pass needs, and compute it again there: less memory, more time.

PyTorch's own checkpoint gives wrong gradients, and says nothing, where a block writes into what autograd saved, as some
of the host's do. So the backward pass runs a block again on copies, inside the recording of gradients.py.
"""
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

UNET = ResBlock, BasicTransformerBlock
Weights = Callable[[str], Mapping[str, Tensor]]


def blocks(network) -> dict[str, Any]:
    """{name: block}, none inside another: of a U-Net its residual and transformer blocks, else what stands in lists."""
    found = {name: m for name, m in network.named_modules() if isinstance(m, UNET)}
    return found or {f"{name}.{place}": m for name, several in network.named_children()
                     if isinstance(several, torch.nn.ModuleList) for place, m in several.named_children()}


def again(network) -> dict[str, Any]:
    """Those that are computed again: all but the last, whose backward pass comes first, while all else is kept."""
    return dict(list(blocks(network).items())[:-1])


@contextmanager
def recomputed(network, weights: Weights, recording):
    """While it lasts a forward keeps of its blocks no more than what goes into them.

    weights: a block's name -> its weights by their names in it, asked in each of its passes. Leaves that they are made
        of get their gradients.
    recording: the context in which autograd records, inside a backward pass.
    """
    # without it, a block whose input needs no gradient would have no backward pass
    anchor = torch.zeros(1, requires_grad=True)
    with forwards({block: _Forward(name, block, weights, recording, anchor)
                   for name, block in again(network).items()}):
        yield


@contextmanager
def forwards(standing: Mapping):
    """While it lasts these stand in modules' forwards: {module: callable}."""
    before = {module: module.__dict__.get("forward") for module in standing}
    try:
        for module, forward in standing.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


class _Body(torch.nn.Module):
    """A block's own forward, which no longer stands in the block."""

    def __init__(self, block):
        super().__init__()
        self.block, self.own = block, block.forward

    def forward(self, *args, **kwargs):
        return self.own(*args, **kwargs)


class _Forward:
    """What stands in a block's forward."""

    def __init__(self, name, block, weights, recording, anchor):
        self.body = _Body(block)
        self.weights = lambda: {f"block.{n}": t for n, t in weights(name).items()}
        self.recording, self.anchor = recording, anchor

    def __call__(self, *args, **kwargs):
        leaves, shape = tree_flatten((args, kwargs))
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[n] for n in places]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        shapes = []  # of what comes out

        def run(given):
            filled = list(others)
            for n, tensor in zip(places, given):
                filled[n] = tensor.clone()  # the block may write into it
            args, kwargs = tree_unflatten(filled, shape)
            out = torch.func.functional_call(self.body, self.weights(), args, kwargs)
            found, made = tree_flatten(out)
            shapes[:] = [made]
            return tuple(found)

        # tensors inside of them would be taken for constants
        if not torch.is_grad_enabled() or any(is_dataclass(leaf) for leaf in others):
            return tree_unflatten(run(tensors), shapes[0])
        out = _Again.apply(run, self.recording, self.anchor, *tensors)
        return tree_unflatten(out, shapes[0])


class _Again(torch.autograd.Function):
    """run(tensors) -> tensors, which keeps only what it is given."""

    @staticmethod
    def forward(ctx, run, recording, anchor, *tensors):
        ctx.run, ctx.recording = run, recording
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)  # None for what nobody reads
        return run(tensors)

    @staticmethod
    def backward(ctx, *gradients):
        with ctx.recording():
            given = [t.detach().requires_grad_(needed)  # the block runs on copies of them
                     for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:])]
            pairs = [(t, g) for t, g in zip(ctx.run(given), gradients) if g is not None and t.requires_grad]
            if pairs:
                torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        return None, None, None, *(t.grad for t in given)
