"""Attention at one site with explicit softmax maps, as the papers write it, and a stand-in for the host's run."""
from dataclasses import dataclass, field

import torch

HEADS, DIM, SIDE = 2, 8, 4


def relative(a, b):
    """The largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def by_head(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def softmax_maps(q, k, bias=0.0):
    """[rows, heads, queries, keys]"""
    return (by_head(q) @ by_head(k).transpose(-1, -2) / (q.shape[-1] // HEADS) ** 0.5 + bias).softmax(-1)


def only(keys):
    """The bias that makes an edit look up no other tokens."""
    return torch.zeros(keys.shape).masked_fill(~keys, -torch.inf)


def apply_maps(maps, v):
    return (maps @ by_head(v)).transpose(1, 2).flatten(2)


def attention(q, k, v):
    return apply_maps(softmax_maps(q, k), v)


def features(rows, seed, tokens=SIDE * SIDE):
    """q, k and v [rows, tokens, channels], each with its own mean."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, tokens, HEADS * DIM, generator=generator).double() + i for i in range(3)]


@dataclass
class Run:
    """A stand-in for a run, for the maths of one site."""
    shape: tuple = (1, 4, 2 * SIDE, 2 * SIDE)
    states: dict = field(default_factory=dict)
    editors: tuple = ()

    def state(self, editor):
        return self.__dict__.setdefault("states", {}).setdefault(id(editor), editor.State())


@dataclass
class Call:
    run: Run
    sigma: float = 1.0
    network: object = None
