"""Moving the latent before a step.

What an editor adds to its step starts from the moved latent. The host's sampler keeps its own x, so the difference
comes back in the x0 it sees: with Δ = x' - x, a step of Euler's from x with x0 + σ'/(σ - σ')·Δ ends where one from x'
with x0 does. A solver that holds two latents has the one that is seen moved itself.
"""
from dataclasses import dataclass

from torch import Tensor

from .editor import Editor


class Mover(Editor):
    """`move` gives the x from which the step is taken."""

    @dataclass
    class State:
        """shift: what the x0 of this evaluation is changed by; None before the first."""
        shift: Tensor | float | None = None

    def move(self, run, x, sigma) -> Tensor:
        raise NotImplementedError

    def before(self, run, x, sigma):
        moved = self.move(run, x, sigma)
        clean, shift = next_level(run, sigma), 0
        if run.coupled is None:
            shift = clean / (sigma - clean) * (moved - x)
        else:
            run.coupled.move(moved - x)
        run.state(self).shift = shift
        return moved

    def after(self, run, x0, sigma):
        return x0 + run.state(self).shift


def next_level(run, sigma) -> float:
    """The σ of the run's next level."""
    return next((s for s in run.sigmas.tolist() if s < sigma * (1 - 1e-4)), 0.0)
