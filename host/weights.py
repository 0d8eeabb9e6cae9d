"""A MODEL's weights as its checkpoint has them, those of quantised checkpoints too.

The host's own way to them, get_key_patches, breaks on quantised checkpoints: their files have more entries than their
modules have tensors (ComfyUI's issue 14382).
"""
from typing import Any

import comfy.utils
import torch
from torch import Tensor

try:  # a weight and its scale as one tensor, which tells another dtype than its numbers have
    from comfy.quant_ops import QuantizedTensor
except ImportError:  # ComfyUI 0.3.64
    QUANTISED: Any = ()
else:
    QUANTISED = QuantizedTensor


def quantised(weight) -> bool:
    """Whether a weight is one of the host's quantised tensors."""
    return isinstance(weight, QUANTISED)


def coarse(model) -> bool:
    """Whether a MODEL has weights of so few bits that a sum with them would be rounded coarsely."""
    return any(quantised(w) or w.is_floating_point() and w.dtype.itemsize == 1
               for w in model.model.diffusion_model.parameters())


def plain(weight) -> bool:
    """Whether a weight is a tensor of numbers, as those of other nodes' loaders need not be either."""
    return weight.is_floating_point() and type(weight) in (Tensor, torch.nn.Parameter)


def numbers(weight: Tensor) -> Tensor:
    """A weight, or the numbers that a quantised one stands for."""
    return weight.dequantize() if quantised(weight) else weight


def matrices(model) -> list[str]:
    """The names of a MODEL's tensors of two and more dimensions, in order."""
    entries = model.model_state_dict("diffusion_model.")
    return sorted(name for name, entry in entries.items() if entry.ndim > 1 and _has(model.model, name))


def _has(module, name) -> bool:
    try:
        comfy.utils.get_attr(module, name)
    except AttributeError:
        return False
    return True


def unpatched(model, name: str) -> Tensor:
    """A MODEL's tensor as it is before any patch."""
    if name in model.hook_backup:
        return model.hook_backup[name][0]
    return model.backup[name].weight if name in model.backup else comfy.utils.get_attr(model.model, name)
