"""A Neural Space-Time Representation for Text-to-Image Personalization. Alaluf, Richardson, Metzer, Cohen-Or, ACM
Transactions on Graphics 2023. arXiv:2305.15391

A concept is a small network M (NeTI), which gives the word's vector for each timestep t and each cross-attention layer
l. It reads sines and cosines of w·(t, l) for fixed random w, first through a layer that begins as their likeness to ten
times and all layers. Its output is two vectors of together the norm that a word of the concept's kind has,

    M(t, l) = (v_base, v_pass).

v_base goes through the text encoder. v_pass comes to the encoder's output at the word, in 0.2 of its norm; keys do
not see it, values do (the textual bypass). While it learns, a hidden vector is cut at a random length half of the time
(nested dropout), which orders it by importance.

Differs from the paper: t is told as the middle of one of fifty stages, in learning as in sampling; the authors sample
with fifty steps. The layers of one transformer share a vector. One text encoder, so not SDXL.
Checked against: NeuralTextualInversion/NeTI@28edf306f9584b3b4f6dd6f37e603e70f445462b (MIT), whose mapper's numbers on
equal weights are in tests/data/neti.json; the bypass against its equation on transformers' text encoder.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.concepts import Theta, WordAt
from ..editing.word_spaces import STEPS, WordSpace

WAVES, ANCHORS, HIDDEN = 1024, 10, 128
DEVIATIONS = 0.03, 2.0  # of w, for t and for l
DROPOUT = 0.5
BYPASS = 0.2


def encoding(w: Tensor, t: Tensor, layer: Tensor) -> Tensor:
    """[…, 2·waves] of times and layers, of norm 1. w: [waves,2]."""
    x = torch.stack([t, layer], -1) @ w.T
    return F.normalize(torch.cat([x.sin(), x.cos()], -1), dim=-1)


def mapper(theta: Theta, t: Tensor, layer: Tensor, cut: Tensor | None = None) -> Tensor:
    """M(t, l): [L,2D]. cut: how many of the hidden numbers stay, [L]."""
    h = F.linear(encoding(theta["w"], t, layer), theta["0.weight"], theta["0.bias"])
    for n in "12":
        h = F.linear(h, theta[f"{n}.weight"], theta[f"{n}.bias"])
        h = F.leaky_relu(F.layer_norm(h, (HIDDEN,), theta[f"{n}.norm.weight"], theta[f"{n}.norm.bias"]))
    if cut is not None:
        h = h * (torch.arange(HIDDEN, device=h.device) < cut[:, None])
    return theta["norm"] * F.normalize(F.linear(h, theta["3.weight"], theta["3.bias"]), dim=-1)


def begin(layers: int, width: int, norm: Tensor, generator: torch.Generator) -> Theta:
    """The network before it learns, as PyTorch's layers begin. w is the same whatever the seed, so that learning may go
    on with another."""
    w = torch.randn(WAVES, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(DEVIATIONS)
    grid = torch.cartesian_prod(torch.arange(0.0, STEPS, STEPS // ANCHORS), torch.arange(float(layers)))
    theta = {"w": w, "norm": norm}
    sizes = 2 * WAVES, len(grid), HIDDEN, HIDDEN, 2 * width
    for n, (fan, out) in enumerate(zip(sizes, sizes[1:])):
        for part, shape in (("weight", (out, fan)), ("bias", (out,))):
            theta[f"{n}.{part}"] = (2 * torch.rand(shape, generator=generator) - 1) / fan ** 0.5
    theta["0.weight"] = encoding(w, *grid.T)
    for n in "12":
        theta |= {f"{n}.norm.weight": torch.ones(HIDDEN), f"{n}.norm.bias": torch.zeros(HIDDEN)}
    return {name: value.requires_grad_(name not in ("w", "norm")) for name, value in theta.items()}


@dataclass(frozen=True)
class NeuralSpaceTime(WordSpace):
    """One word of each layer and stage, by a network."""
    stages: ClassVar[int] = 50
    in_layers: ClassVar[bool] = True

    def start(self, like):
        if len(like) != 1:
            raise ValueError(f"NeTI's network gives the word of one text encoder, this CLIP has {len(like)} "
                             f"({', '.join(like)}): take an SD1.x or SD2.x checkpoint, or New Word in Layers.")
        return super().start(like)

    def begin(self, start, layers, generator):
        (encoder, vector), = start.items()
        return {f"{encoder}/{name}": value
                for name, value in begin(layers, vector.shape[1], vector[0].norm(), generator).items()}

    def at(self, theta, stage, generator=None):
        encoder = next(iter(theta)).partition("/")[0]
        own = {name.partition("/")[2]: value for name, value in theta.items()}
        layers = torch.arange(float(len(own["0.weight"]) // ANCHORS), device=own["w"].device)
        t = torch.full_like(layers, STEPS * (1 - (stage + 0.5) / self.stages) - 0.5)
        cut = None
        if generator is not None:
            dropped = torch.rand(len(layers), generator=generator) < DROPOUT
            cut = torch.where(dropped, torch.randint(HIDDEN, (len(layers),), generator=generator), HIDDEN).to(t.device)
        base, bypass = mapper(own, t, layers, cut)[:, None].chunk(2, -1)
        return WordAt({encoder: base}, {encoder: BYPASS * F.normalize(bypass, dim=-1)})
