"""Pivotal tuning: what null-text inversion's kin share. Sampling with guidance is led back to the pivot trajectory z*_T
… z*_0, at each step t by some θ_t of the prediction:

    min over θ_t of ‖z*_{t-1} - z_{t-1}(z̄_t, θ_t)‖²,    then z̄_{t-1} = z_{t-1}(z̄_t, θ_t), θ_{t-1} = θ_t.

What θ is, and where it acts, is the paper's. The step is Euler's; the loss is the mean square in z = x/√(1+σ²), the
papers' latent (z = x on flow models), and a picture's step ends early under `tolerance`, which grows by twice itself
for every fiftieth of the schedule, as in null-text inversion's code. The optimiser is L-BFGS, whose memory goes from
step to step as θ does, since neighbouring steps have like curvature; its first step along the gradient g is ℓ/(2‖g‖²),
which solves a linear residual of one dimension.
"""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import trange

from .grid import append_dims, report_step
from .method import Setting
from .trajectory import Theta

MEMORY = 8
TOLERANCE = Setting(1e-5, 0.0, 1.0)


class Network(Protocol):
    """The network as a method that learns along a trajectory asks it (editing/inverting.py).

    prompts: the CONDITIONING of "source", and of "null" and "target" where they are given.
    """
    prompts: Mapping[str, list]

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 of the source prompt at the run's CFG."""
        ...

    def x0(self, prompt: str, x: Tensor, sigma: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x0 of a prompt, or of the embedding [B,tokens,D] in its place."""
        ...

    def embedding(self, prompt: str) -> Tensor:
        """[B,tokens,D] of a prompt, one for each picture."""
        ...

    def pooled(self, prompt: str) -> dict[str, Theta]:
        """θ_F of a prompt's pooled embedding, by the name "pooled"; nothing where it has none."""
        ...

    def cross_attention(self, resolution: float) -> list:
        """Addresses of cross-attention, down and up, on the grid of about this resolution."""
        ...

    def with_values(self, addresses: list, x: Tensor, sigma: Tensor, scale: Tensor | None, shift: Tensor | None
                    ) -> tuple[Tensor, list[Tensor]]:
        """x0 of the source prompt, and its maps at these addresses. What cross-attention takes its values from is
        scaled and shifted."""
        ...

    def self_attention(self, layers: str, default: Callable[[list], frozenset]) -> list:
        """Addresses that a text of layers names; where it is empty, those that default(all layers) chooses."""
        ...

    def widths(self, x: Tensor, sigma: Tensor) -> dict:
        """address -> (places, width) of what self-attention takes its keys and values from."""
        ...

    def with_contents(self, x: Tensor, sigma: Tensor, contents: dict) -> Tensor:
        """x0 of the source prompt, with {address: Δ [B,2,places,width]} added to those keys and values."""
        ...


@dataclass
class LBFGS:
    """Nocedal's two-loop recursion (1980) on rows [B,N] that are problems of their own; without a line search, a step
    being no longer than ℓ·2/‖g‖, where a linear model of the loss would be under its least value, 0."""
    memory: int = MEMORY
    pairs: list = field(default_factory=list)
    last: tuple | None = None

    def restart(self):
        """A new function, of like curvature."""
        self.last = None

    def step(self, x: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """The next x [B,N], from the gradient [B,N] and the loss [B] at x."""
        if self.last is not None:
            self.pairs = [*self.pairs, (x - self.last[0], gradient - self.last[1])][-self.memory:]
        self.last = x, gradient
        first = (loss / 2 / gradient.square().sum(1).clamp(min=torch.finfo(loss.dtype).tiny))[:, None]
        q, weights = gradient, []
        for s, y in reversed(self.pairs):
            weights.append(_ratio(s, q, s, y))
            q = q - weights[-1] * y
        scale = first
        for s, y in self.pairs[-1:]:
            scale = torch.where(_dot(s, y) > 0, _dot(s, y) / _dot(y, y), first)
        q = scale * q
        for (s, y), weight in zip(self.pairs, reversed(weights)):
            q = q + (weight - _ratio(y, q, s, y)) * s
        q = torch.where(_dot(q, gradient) > 0, q, first * gradient)
        longest = 4 * first * gradient.norm(dim=1, keepdim=True)
        return x - q * (longest / q.norm(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1)


def _dot(a, b):
    return (a * b).sum(1, keepdim=True)


def _ratio(a, b, s, y):
    """a·b / s·y, and 0 for a pair (s, y) whose curvature is not positive."""
    curvature = _dot(s, y)
    return torch.where(curvature > 0, _dot(a, b) / curvature, 0.0)


def follow(predict, path: list, sigmas: Tensor, start: Tensor, *, iterations=10, decay=0.0, tolerance=1e-5, flow=False,
           callback=None, disable=None) -> tuple[Tensor, list]:
    """Follow the pivot `path` (S+1 latents [B,C,…] in the order of sigmas), optimising θ [B,…] from `start` with at
    most `iterations` updates in the first step, which e^-decay of are left at the end of the schedule.

    predict(x, sigma [B], pivot) is called once a step, without gradients, and gives a differentiable f(θ [B,…]) -> (x0,
    penalty [B] or 0, added to the loss). Returns θ [S,B,…] and for each step (first loss, last loss, updates), the
    losses being the largest of the pictures'.
    """
    x, rows, theta = path[0], path[0].new_ones(len(path[0])), start.clone()
    learned, history, optimiser, steps = [], [], LBFGS(), len(sigmas) - 1
    for i in (bar := trange(steps, disable=disable)):
        sigma, following = sigmas[i], sigmas[i + 1]
        with torch.no_grad():
            at = predict(x, sigma * rows, path[i])
        limit, most = tolerance * (1 + 2 * 50 * i / steps), math.ceil(iterations * math.exp(-decay * i / steps))
        norm = 1.0 if flow else (1 + following ** 2).sqrt()
        optimiser.restart()
        best: list[Tensor] = []
        losses = []
        for update in range(most + 1):
            leaf = theta.detach().requires_grad_()
            denoised, penalty = at(leaf)
            landed = x + (following - sigma) / sigma * (x - denoised)
            loss = ((landed - path[i + 1]) / norm).square().flatten(1).mean(1) + penalty
            now = [t.detach() for t in (loss, landed, denoised, leaf)]
            best = [_choose(now[0] < best[0], a, b) for a, b in zip(now, best)] if best else now
            losses.append(float(best[0].max()))
            bar.set_postfix(loss=f"{losses[-1]:.1e}", update=update)
            if losses[-1] <= limit or update == most:
                break
            gradient, = torch.autograd.grad(loss.sum(), leaf)
            moved = optimiser.step(leaf.detach().flatten(1), gradient.flatten(1), now[0]).view_as(leaf)
            theta = _choose(best[0] <= limit, best[3], moved)  # a picture that is near enough rests
        del denoised, penalty, landed, loss  # the last look's graph, or it stays through the next one
        x, theta = best[1], best[3]
        learned.append(theta.cpu())
        history.append([losses[0], losses[-1], update])
        report_step(callback, i, x, sigma, best[2])
    return torch.stack(learned), history


def _choose(rows, a, b):
    """a where the row is chosen, else b."""
    return torch.where(append_dims(rows, a), a, b)
