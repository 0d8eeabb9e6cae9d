"""The reader of hard edits, by analysis through synthesis. It needs no training.

For each detail that no caption states, the edit's exact target is rendered with every value that the detail could have,
and without it, all else exact. The picture keeps the detail if of these variants it is nearest to the exact target,
where they differ. What the edit asks for is read in the same way. Where the source hides a fact, each variant is
rendered with several values of it, and its nearest picture counts.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from . import scenes
from .looks import ARMS, FACES, HUES, LIGHTS, PERIODS
from .scenes import Edit, Obj, Scene

VISIBLE = .0015
"""Variants whose pictures differ less, in the mean over all pixels, cannot be told apart and are not asked."""
ANEW = 3
"""Other seeds of a ground that are tried."""
MOVES = ("x", -.04), ("x", .04), ("y", -.04), ("y", .04), ("r", -.04), ("r", .04)
"""By which an object has left its place, in picture widths."""
SHIFTS = (0, 0), (-.02, -.02), (.02, -.02), (-.02, .02), (.02, .02)


@dataclass(frozen=True, eq=False)
class Question:
    """where: the cells that tell, indices (N); values: their colours in the variants (K, N, 3), the right ones first.
    """
    where: np.ndarray
    values: np.ndarray
    right: int

    def answer(self, cells: np.ndarray) -> bool:
        """Whether a picture's cells (M, 3) are nearest to a right variant."""
        return bool(np.square(cells[self.where] - self.values).sum((1, 2)).argmin() < self.right)


def read_details(images: torch.Tensor, edits: list[Edit]) -> list[dict[str, bool]]:
    """Whether each picture (B, H, W, 3) in 0..1 shows each detail of its edit's exact target: detail -> right or not.

    The details are "place" (with size), "phase", "second", "period", "mark", "face" and "arms" of the objects ("mark#2"
    is the second object's), "twin" (the other of two equal objects stays as it was), and the scene's "ground", "light"
    and "spot". An edit has those that its target shows and its source does not hide.
    """
    return [{name: right for name, right in row.items() if name != "asked"} for row in _read(images, edits)]


def read_asked(images: torch.Tensor, edits: list[Edit]) -> list[bool]:
    """Whether each picture (B, H, W, 3) in 0..1 shows what its edit asks for."""
    return [row["asked"] for row in _read(images, edits)]


def _read(images, edits) -> list[dict[str, bool]]:
    pictures = images.float().cpu().numpy()
    return [{name: question.answer(_cells(p)) for name, question in questions(e.source, e.target, e.kind).items()}
            for p, e in zip(pictures, edits, strict=True)]


def _cells(picture: np.ndarray) -> np.ndarray:
    """The means (M, 3) of two by two pixels."""
    return picture.reshape(scenes.SIZE // 2, 2, scenes.SIZE // 2, 2, 3).mean((1, 3)).reshape(-1, 3)


@lru_cache(maxsize=64)
def questions(source: Scene, target: Scene, kind: str) -> dict[str, Question]:
    """What is read of an edit's picture: its details, and "asked"."""
    i = next((i for i, o in enumerate(target.objs) if o not in source.objs), -1)
    found, truth = {}, _drawn(target)
    for name, others in {**_details(source, target, kind, i), "asked": _asked(source, target, kind, i)}.items():
        pattern = name in (f"second{'#2' * i}", f"period{'#2' * i}")
        hides = name == "asked" or kind == "material" and pattern
        right, *wrong = ([_drawn(v) for v in _hidden(s, kind, i)] if hides else [_drawn(s)] for s in (target, *others))
        wrong = [drawn for drawn in wrong if abs(drawn[0] - truth).mean() > VISIBLE]
        if wrong:
            values = np.stack([*right, *sum(wrong, [])])
            where = np.flatnonzero((values != truth).any((0, 2)))
            found[name] = Question(where, values[:, where], len(right))
    return found


def _drawn(scene: Scene) -> np.ndarray:
    return _cells(scenes.render(scene))


def _hidden(scene: Scene, kind: str, i: int) -> list[Scene]:
    """The scene, and others with another value of what an edit's source hides, object `i` being new or changed."""
    if kind == "background":
        return [replace(scene, seed=scene.seed + k) for k in range(ANEW)]
    if kind == "material":
        return [_with(scene, i, phase=scene.objs[i].phase + k / 4) for k in range(4)]
    if kind == "add" and i < len(scene.objs) == 2:
        o = scene.objs[i]
        return [_with(scene, i, x=o.x + dx, y=o.y + dy) for dx, dy in SHIFTS]
    return [scene]


def _asked(source: Scene, target: Scene, kind: str, i: int) -> list[Scene]:
    """Scenes that do not show what the edit asks for."""
    if kind == "style":
        return [replace(target, style=s) for s in scenes.STYLES if s != target.style]
    if kind == "background":
        return [replace(target, ground=g) for g in scenes.GROUNDS if g != target.ground]
    if kind == "delete":
        return [source]
    made = {"object": ["shape"], "add": ["shape", "colour", "material"], "pose": ["tilted"]}.get(kind, [kind])
    values = dict(shape=scenes.SHAPES, colour=scenes.COLOURS, material=scenes.MATERIALS, tilted=(False, True))
    o = target.objs[i]
    return [source] * (kind == "add") + [_with(target, i, **{n: v}) for n in made for v in values[n]
                                         if v != getattr(o, n)]


def _details(source: Scene, target: Scene, kind: str, i: int) -> dict[str, list[Scene]]:
    """The scenes that differ from the target in one detail, by detail."""
    found = {}
    for k, o in enumerate(target.objs):
        if not (kind == "add" and k == i):
            made = {"place": [_with(target, k, **{n: getattr(o, n) + d}) for n, d in MOVES]}
            if o.material != "plain" and not (kind == "material" and k == i):
                made["phase"] = [_with(target, k, phase=o.phase + d) for d in (1 / 3, 2 / 3)]
            made |= {name: [_with(target, k, looks=replace(o.looks, **change)) for change in changes]
                     for name, changes in _changes(o).items()}
            found |= {name + "#2" * k: others for name, others in made.items()}
    if i >= 0 and len(source.objs) == 2:
        new, old = target.objs[i], source.objs[i]
        change = {n: getattr(new, n) for n in ("shape", "colour", "material", "tilted")
                  if getattr(new, n) != getattr(old, n)}
        found["twin"] = [_with(target, 1 - i, **change)]
    if kind != "background":
        found["ground"] = [replace(target, seed=target.seed + 1 + k) for k in range(ANEW)]
    if target.light:
        found["light"] = [replace(target, light=v) for v in ("", *LIGHTS) if v != target.light]
    if target.spot:
        found["spot"] = [replace(target, **change) for change in _places("spot", target.spot, target.corner)]
    return found


def _changes(o: Obj) -> dict[str, list[dict]]:
    """What could be otherwise in an object's looks, by detail."""
    looks, found = o.looks, {}
    if looks.second:
        found["second"] = [dict(second=c) for c in ("", *HUES) if c not in (looks.second, o.colour)]
    if o.material != "plain":
        found["period"] = [dict(period=p) for p in PERIODS if p != looks.period]
    if looks.mark:
        found["mark"] = _places("mark", looks.mark, looks.corner)
    if looks.face:
        found["face"] = [dict(face=f) for f in ("", *FACES) if f != looks.face]
    if looks.arms:
        found["arms"] = [dict(arms=a) for a in ("", *ARMS) if a != looks.arms]
    return found


def _places(name: str, colour: str, corner: int) -> list[dict]:
    return [{name: c} for c in ("", *HUES) if c != colour] + [dict(corner=k) for k in range(4) if k != corner]


def _with(scene: Scene, i: int, **changed) -> Scene:
    return replace(scene, objs=scene.objs[:i] + (replace(scene.objs[i], **changed),) + scene.objs[i + 1:])
