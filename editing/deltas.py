"""The changes of weights that learn."""
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .concepts import WeightBasis


class Weights:
    """The θ of a basis in a run, for the network or for the text encoder."""

    def __init__(self, basis: WeightBasis, weights: Mapping[str, Tensor], names: Mapping[str, str], generator):
        self.basis, self.names, self.weights = basis, names, weights
        self.theta = {name: {part: t.detach().to(weight.device, torch.float32).requires_grad_(t.requires_grad)
                             for part, t in basis.start(weight, generator).items()}
                      for name, weight in weights.items()}

    def leaves(self) -> list[Tensor]:
        return [t for parts in self.theta.values() for t in parts.values() if t.requires_grad]

    def delta(self, name) -> Tensor:
        return self.basis.delta(self.theta[name], self.weights[name])

    def saved(self) -> dict[str, Tensor]:
        return {f"{self.names[name]}.{part}{'_b' * name.endswith('.bias')}": value.detach().cpu().clone()
                for name, parts in self.theta.items()
                for part, value in self.basis.saved(parts, self.weights[name]).items()}


class Deltas(Mapping):
    """{weight: what is added to it now}, made when it is asked for."""

    def __init__(self, parts: Iterable[Weights]):
        self.parts = {name: part for part in parts for name in part.theta}

    def __getitem__(self, name):
        return self.parts[name].delta(name)

    def __iter__(self):
        return iter(self.parts)

    def __len__(self):
        return len(self.parts)
