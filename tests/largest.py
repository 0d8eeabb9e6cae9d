"""The largest tensor that any operation makes."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """Of all tensors that operations return: the most elements, and the most bytes of memory that one stands on."""
    numel = size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.numel, self.size = max(self.numel, t.numel()), max(self.size, t.untyped_storage().nbytes())
        return out
