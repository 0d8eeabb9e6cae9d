"""The scene reader. It names what a picture of a scene shows, so that edits can be scored."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from .networks import READER_HEADS, ReaderNet
from .scenes import SIZE

WEIGHTS = Path(__file__).with_name("reader.safetensors")


@lru_cache(maxsize=1)
def _net() -> ReaderNet:
    net = ReaderNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False)


def probabilities(images: torch.Tensor, batch: int = 32) -> dict[str, torch.Tensor]:
    """Pictures (B, 128, 128, 3) in 0..1 to probabilities (B, classes) by attribute. READER_HEADS lists the classes.

    The attributes are shape, colour, material and pose of the first object (left or upper), the same with "#2" for the
    second object, ground, style and count. Other picture sizes raise ValueError.
    """
    with torch.inference_mode():
        logits = [_net()(part) for part in _shown(images).split(batch)]
        return {head: torch.cat([part[head] for part in logits]).softmax(-1) for head in READER_HEADS}


def features(images: torch.Tensor) -> torch.Tensor:
    """Unit vectors (B, 192) of what the reader sees in pictures (B, 128, 128, 3) in 0..1, before it names it."""
    with torch.inference_mode():
        return torch.nn.functional.normalize(_net().body(_shown(images)), dim=-1)


def _shown(images: torch.Tensor) -> torch.Tensor:
    if images.ndim != 4 or tuple(images.shape[1:]) != (SIZE, SIZE, 3):
        raise ValueError(f"the reader knows pictures of shape (B, {SIZE}, {SIZE}, 3), got {tuple(images.shape)}: "
                         "resize them first")
    return images.float().cpu().movedim(-1, 1) * 2 - 1


def read(images: torch.Tensor) -> list[dict[str, str]]:
    """What each picture (B, 128, 128, 3) in 0..1 shows: attribute -> name.

    The second object's attributes ("shape#2") are present only if the reader counts two objects.
    """
    best = {head: p.argmax(-1).tolist() for head, p in probabilities(images).items()}
    rows = [{head: READER_HEADS[head][best[head][i]] for head in best} for i in range(len(images))]
    return [{k: v for k, v in row.items() if "#2" not in k or row["count"] == "2"} for row in rows]
