"""The changes of weights that learn."""
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..host.concept_files import lora_names, patched_weights
from ..host.progress import ProgressBar, raise_if_cancelled
from ..host.weights import quantised
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

    def compact(self) -> dict[str, Tensor]:
        """What a CONCEPT's `compact` holds of it."""
        found = {self.names[name]: self.basis.compact(theta) for name, theta in self.theta.items()}
        return {name: few.detach().cpu().clone() for name, few in found.items() if few is not None}


def regrown(model, basis: WeightBasis, compact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The changes that few numbers make of a MODEL's own weights, as a LoRA's file holds them. ValueError where the
    MODEL has no such weights."""
    inside = {name: key for key, name in lora_names(model).items() if key.endswith(".weight")}
    lacking = compact.keys() - inside.keys()
    if lacking:
        raise ValueError(f"{len(lacking)} of the {len(compact)} weights that the concept changes are not in this "
                         f"MODEL, such as {min(lacking)}: connect the MODEL that learned it.")
    own = dict(model.model.diffusion_model.named_parameters())
    rounded = [name for name in compact if quantised(own[inside[name]])]
    if rounded:
        raise ValueError(f"{len(rounded)} of the {len(compact)} weights that the concept changes are quantised in this "
                         f"MODEL, such as {rounded[0]}: connect the MODEL that learned it.")
    weights, bar = {}, ProgressBar(len(compact))
    for name, weight in patched_weights(model, {name: inside[name] for name in compact}):
        raise_if_cancelled()
        theta = basis.regrown(compact[name].to(weight), weight)
        weights |= {f"{name}.{part}": value.cpu() for part, value in basis.saved(theta, weight).items()}
        bar.update(1)
    return weights


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
