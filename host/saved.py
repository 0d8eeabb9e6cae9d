"""What autograd saves while a gradient goes through the host's model: as it was, or made again."""
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .weights import quantised

# {storage of a changed or cast weight: (what makes it, of which weight)}, while a module computes with it. A changed
# weight knows what it is made of.
MADE: dict[int, tuple[Callable, Tensor | None]] = {}
WATCHED: list = []  # called with (what holds it, a tensor) that autograd saves


class Held:
    """A tensor that autograd saved, as it was then."""

    def __init__(self, tensor):
        self.keep(tensor)

    def keep(self, tensor):
        self.tensor, self.version = tensor, tensor._version

    def unpack(self):
        if self.tensor._version != self.version:
            raise RuntimeError("A gradient needs a tensor that the model wrote into where PyTorch does not tell "
                               "Python: this model runs with editors and inversions that take no gradient only.")
        return self.tensor


class _Again:
    """A changed or cast weight that autograd saved, or a view of it. It is made again."""

    def __init__(self, make, tensor):
        self.make, self.view = make, (tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self):
        with torch._C.DisableTorchFunction():
            return self.make().detach().as_strided(*self.view)


class CopyBeforeWrite(TorchFunctionMode):
    """Copies what autograd saved before a function writes into its storage.

    PyTorch's allow_mutation_on_saved_tensors does so too. But it knows a tensor by an address that the next one may be
    given, so that a gradient in fifty came out wrong. It also looks at every operation, those of the backward pass too,
    which takes as long as a small model."""

    def __init__(self, beside):
        super().__init__()
        self.beside = beside
        self.held = defaultdict(WeakSet)  # by storage, which lives as long as what holds it

    def pack(self, tensor):
        with torch._C.DisableTorchFunction():
            make, weight = MADE.get(tensor.untyped_storage()._cdata, (None, None))
            if make and weight is None:
                return _Again(make, tensor)
            if make:  # the host's hooks write into weights between two prompts
                kept = self._hold(weight)
                return _Again(lambda: make(kept.unpack()), tensor)
            held = self._hold(tensor)
            for watch in WATCHED:
                watch(held, tensor)
            return held

    def _hold(self, tensor):
        held = Held(tensor.detach())  # the tensor itself would keep its graph, and be kept by it
        self.held[tensor.untyped_storage().data_ptr()].add(held)
        return held

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _writes(getattr(function, "__name__", "")) or "out" in kwargs or kwargs.get("inplace"):
            for tensor in tree_leaves((args[:1], kwargs.get("out"))):
                if isinstance(tensor, torch.Tensor) and not quantised(tensor):  # which is not saved, and has no address
                    for held in self.held.pop(tensor.untyped_storage().data_ptr(), ()):
                        held.keep(held.tensor.clone())
        if self.beside and torch.is_grad_enabled():
            args, kwargs = tree_map_only(torch.Tensor, _savable, (args, kwargs))
        return function(*args, **kwargs)


def _savable(tensor):
    """What autograd may save in a tensor's place."""
    with torch._C.DisableTorchFunction():
        return alias(tensor) if tensor.is_inference() and type(tensor) is torch.Tensor else tensor


@cache
def _writes(name: str) -> bool:
    """Whether a function of this name writes into its first argument."""
    name = name.partition(".")[0]  # of an operator's overload
    return name == "__setitem__" or name.startswith("__i") or name.endswith("_") and not name.endswith("__")


def alias(tensor):
    """A tensor on the same memory that autograd may save."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
