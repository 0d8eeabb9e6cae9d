"""What a step of learning needs, before the first one: memory and time.

What autograd keeps grows with the picture's area, beside a part that does not. So a backward pass of two smaller crops
of the largest pictures tells that of the whole. Time is a forward of the whole, times what a step of a crop takes
beside its forward. Small pictures are not cropped.
"""
import math
import time
from dataclasses import dataclass, replace

import torch

from ..host.memory import counting, free_bytes

GB = 2 ** 30
SMALL = 32 * 32  # cells of a latent up to which it is not cropped
ROUNDED = 8  # sides of crops


@dataclass(frozen=True)
class Forecast:
    """network: bytes of its weights.
    step: what a step needs beside them.
    free: bytes.
    seconds: a step takes.
    recomputed: whether blocks are computed again in the backward pass, which needs less memory.
    """
    network: int
    step: int
    free: int
    seconds: float
    recomputed: bool

    def __str__(self):
        how = " (its blocks are computed twice, to need less)" if self.recomputed else ""
        return (f"A step needs about {self.step / GB:.1f} GB beside the network's {self.network / GB:.1f} and takes "
                f"{self.seconds:.2g} s{how}.")


def forecast(learner, recompute: bool | None, watched: bool = False) -> Forecast:
    """What `learner.step` will need. ValueError where that is more than there is.

    watched: whether an average and the best look's values are held beside what learns.
    recompute: None chooses, by what is free. Maps of attention have no gradient where blocks are computed twice.
    """
    ways = (False,) if learner.maps else (False, True) if recompute is None else (recompute,)
    for recomputed in ways:
        learner.recomputed = recomputed
        step, seconds = _measured(learner, watched)
        free = free_bytes(learner.guider, step)
        if step <= free or recompute is not None:
            return Forecast(learner.model.model_size(), step, free, seconds, recomputed)
    twice = ", also with its blocks computed twice," * (len(ways) > 1)
    raise ValueError(f"A step of learning needs about {step / GB:.1f} GB beside the network's "
                     f"{learner.model.model_size() / GB:.1f}{twice} and {free / GB:.1f} GB are free: take smaller "
                     "pictures, or train less (LoRA Weights on attention, or a New Word).")


def _measured(learner, watched) -> tuple[int, float]:
    """(bytes, seconds) of a step."""
    held = 3 + 2 * watched  # a gradient, AdamW's two means; an average and the best look
    states = held * sum(leaf.nbytes for leaf in learner.leaves)
    cells = {share: _cells(learner, share) for share in (1, 2, 4)}
    if cells[1] <= SMALL:
        found, seconds = _once(learner, 1)
        return states + found, seconds
    (less, _), (more, passed) = (_once(learner, share) for share in (4, 2))
    slope = (more - less) / (cells[2] - cells[4])
    return states + int(more + slope * (cells[1] - cells[2])), passed * _forward(learner, 1) / _forward(learner, 2)


def _cells(learner, share) -> int:
    """Of the larger of a step's pictures, cropped."""
    shown = [learner.images, *([learner.prior.images] if learner.prior else [])]
    return max(math.prod(_sides(_largest(images), share)) for images in shown)


def _largest(images):
    return max(images.examples, key=lambda example: math.prod(example.latent.shape[-2:]))


def _sides(example, share) -> tuple:
    """The sides of a latent, or of a crop of it."""
    sides = tuple(example.latent.shape[-2:])
    return sides if share == 1 else tuple(max(ROUNDED, side // share // ROUNDED * ROUNDED) for side in sides)


def _once(learner, share) -> tuple[int, float]:
    """(bytes that autograd kept, seconds) of a step's losses and gradients."""
    encoder = [learner.clip.cond_stage_model] if learner.clip else []
    with counting(learner.guider.inner_model.diffusion_model, *encoder) as kept:
        began = time.perf_counter()
        rows = _rows(learner, share)
        with learner.fixed():
            learner.differentiate(rows)
        seconds = time.perf_counter() - began
    for leaf in learner.leaves:
        leaf.grad = None
    return allowed(kept), seconds


def allowed(kept) -> int:
    """Bytes of a pass, of what autograd kept. A backward pass makes some tensors more."""
    return kept.most + 3 * kept.largest


def _forward(learner, share) -> float:
    """Seconds of a step's forward passes."""
    began = time.perf_counter()
    with torch.no_grad():
        learner.losses(_rows(learner, share))
    return time.perf_counter() - began


def _rows(learner, share) -> list:
    """A step's rows of a crop of the largest picture, and of its prior's."""
    with learner.fixed():
        return learner.drawn(_cropped(learner.images, share), learner.prior and replace(
            learner.prior, images=_cropped(learner.prior.images, share)))


def _cropped(images, share):
    largest = _largest(images)
    height, width = _sides(largest, share)
    masks = {word: mask[:height, :width] for word, mask in largest.masks.items()}
    return replace(images, examples=(replace(largest, latent=largest.latent[..., :height, :width], masks=masks),))
