"""The reader of details: whether a picture keeps what no caption states. It needs no training.

For each detail the edit's exact target is rendered with every value that the detail could have, and without it, all
else exact. The picture has kept a detail if, of these variants, the exact target is the nearest where they differ.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from .looks import ARMS, FACES, LIGHTS, PERIODS
from .scenes import COLOURS, Edit, Scene, render

VISIBLE = .02
"""Mean difference, over the whole picture, below which variants cannot be told apart."""
GROUNDS_ANEW = 3


@dataclass(frozen=True, eq=False)
class Question:
    """where: the pixels that tell, indices (N); values: their colours (K, N, 3), the exact target's first."""
    where: np.ndarray
    values: np.ndarray


def read_details(images: torch.Tensor, edits: list[Edit]) -> list[dict[str, bool]]:
    """Whether each picture (B, H, W, 3) in 0..1 shows each detail of its edit's exact target: detail -> right or not.

    The details are "second", "period", "mark", "face" and "arms" of the objects ("mark#2" is the second object's),
    "twin" (the other of two equal objects stays as it was), and the scene's "ground", "light" and "spot". An edit has
    those that its target shows.
    """
    found = []
    for image, edit in zip(images.float().cpu().numpy(), edits, strict=True):
        pixels = image.reshape(-1, 3)
        found.append({name: bool(np.square(pixels[q.where] - q.values).sum((1, 2)).argmin() == 0)
                      for name, q in questions(edit.source, edit.target, edit.kind).items()})
    return found


def details_kept(images: torch.Tensor, edits: list[Edit]) -> list[float]:
    """The share of details that each picture keeps."""
    return [sum(row.values()) / len(row) for row in read_details(images, edits)]


@lru_cache(maxsize=128)
def questions(source: Scene, target: Scene, kind: str) -> dict[str, Question]:
    """The details that an edit's exact target shows."""
    truth, asked = render(target), {}
    for name, others in variants(source, target, kind).items():
        drawn = [render(s) for s in others]
        drawn = [d for d in drawn if abs(d - truth).mean() * 100 > VISIBLE]
        if drawn:
            values = np.stack([truth, *drawn]).reshape(1 + len(drawn), -1, 3)
            where = np.flatnonzero((values != values[:1]).any((0, 2)))
            asked[name] = Question(where, values[:, where])
    return asked


def variants(source: Scene, target: Scene, kind: str) -> dict[str, list[Scene]]:
    """The scenes that differ from the target in one detail, by detail."""
    found = {}
    for i, o in enumerate(target.objs):
        if kind == "add" and o not in source.objs:
            continue
        made = _of_object(o.looks, o.colour, o.material)
        found |= {name + "#2" * i: [_with(target, i, replace(o, looks=k)) for k in looks]
                  for name, looks in made.items()}
        before = source.objs[i] if len(source.objs) == len(target.objs) == 2 else o
        if before == o and len(source.objs) == len(target.objs) == 2 and kind not in ("style", "background"):
            new, old = target.objs[1 - i], source.objs[1 - i]
            changed = {n: getattr(new, n) for n in ("shape", "colour", "material", "tilted")
                       if getattr(new, n) != getattr(old, n)}
            found["twin"] = [_with(target, i, replace(o, **changed))]
    if kind != "background":
        found["ground"] = [replace(target, seed=target.seed + 1 + k) for k in range(GROUNDS_ANEW)]
    found["light"] = [replace(target, light=v) for v in ("", *LIGHTS) if v != target.light] if target.light else []
    if target.spot:
        found["spot"] = [replace(target, spot=c) for c in ("", *_others(target.spot, ()))] + \
            [replace(target, corner=k) for k in range(4) if k != target.corner]
    return found


def _of_object(looks, colour: str, material: str) -> dict:
    found = {}
    if looks.second:
        found["second"] = [replace(looks, second=c) for c in ("", *_others(looks.second, (colour,)))]
    if material != "plain":
        found["period"] = [replace(looks, period=p) for p in PERIODS if p != looks.period]
    if looks.mark:
        found["mark"] = [replace(looks, mark=c) for c in ("", *_others(looks.mark, (colour,)))] + \
            [replace(looks, corner=k) for k in range(4) if k != looks.corner]
    if looks.face:
        found["face"] = [replace(looks, face=f) for f in ("", *FACES) if f != looks.face]
    if looks.arms:
        found["arms"] = [replace(looks, arms=a) for a in ("", *ARMS) if a != looks.arms]
    return found


def _others(value: str, besides: tuple) -> list[str]:
    return [c for c in COLOURS if c != value and c not in besides]


def _with(scene: Scene, i: int, o) -> Scene:
    return replace(scene, objs=scene.objs[:i] + (o,) + scene.objs[i + 1:])
