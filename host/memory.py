"""What a backward pass keeps in memory, and how much is free."""
import weakref
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management

from .saved import WATCHED


class Kept:
    """Bytes that autograd keeps beside the weights of some networks.

    most: at a time, so far.
    largest: of one tensor.
    """

    def __init__(self, *networks):
        self.weights = {_place(t) for network in networks for t in network.parameters()}
        self.now = self.most = self.largest = 0
        self.held: dict[int, int] = {}  # {storage: how many hold it}

    def __call__(self, held, tensor):
        place, size = _place(tensor), tensor.untyped_storage().nbytes()
        if place in self.weights:
            return
        self.held[place] = self.held.get(place, 0) + 1
        if self.held[place] == 1:
            self.now += size
            self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(held, self._drop, place, size)

    def _drop(self, place, size):
        self.held[place] -= 1
        if not self.held[place]:
            self.now -= size


def _place(tensor) -> int:
    """What tells a storage from others, also where it holds no numbers and has no address."""
    return tensor.untyped_storage()._cdata


@contextmanager
def counting(*networks):
    """Counts what is kept while it lasts."""
    kept = Kept(*networks)
    WATCHED.append(kept)
    try:
        yield kept
    finally:
        WATCHED.remove(kept)


def free_bytes(guider, wanted: int) -> int:
    """What is free on the guider's device, where it is less than wanted after other models have left it."""
    device = guider.model_patcher.load_device
    free: Any = management.get_free_memory(device)
    if device.type != "cpu" and free < wanted:
        ours = [held for held in management.current_loaded_models
                if held.model is not None and held.model.is_clone(guider.model_patcher)]
        management.free_memory(wanted, device, keep_loaded=ours)
        free = management.get_free_memory(device)
    return free


def total_bytes(model) -> int:
    """What the MODEL's device has."""
    total: Any = management.get_total_memory(model.load_device)
    return total
