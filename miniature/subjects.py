"""Subjects to learn: objects with looks that no caption states, in many scenes, and how well a picture shows one.

A subject keeps its shape, colours, pattern and mark. Scenes change its ground, place and size. The caption names the
class, which is the shape, and the ground: "a photo of a * star on a grass background".
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from . import scenes
from .looks import HUES, Looks
from .scenes import Obj, Scene

SUBJECT_SEED = 2 ** 43
SEEN = ("wall", "grass", "sand", "night")
"""Grounds of the pictures to learn from. The others are unseen."""
SHAPES = ("star", "heart", "square", "circle", "triangle")
"""With room for a pattern and a mark."""
UNSEEN = tuple(g for g in scenes.GROUNDS if g not in SEEN)
STEPS = dict(x=.02, y=.02, r=.015, rot=.06)


@dataclass(frozen=True)
class Subject:
    """obj: its looks, at any place."""
    obj: Obj

    @property
    def noun(self) -> str:
        return self.obj.shape

    def caption(self, ground: str, style: str = "photo") -> str:
        return f"a {style} of a * {self.noun} on a {ground} background"


def subject(number: int) -> Subject:
    """Subject `number`: a striped, dotted or checkered object in two colours with a mark in a third."""
    rng = np.random.default_rng(SUBJECT_SEED + number)
    shape = SHAPES[number % len(SHAPES)]
    colour, second, mark = rng.choice(HUES, 3, replace=False).tolist()
    looks = Looks(second, float(rng.choice((1., 1.3))), mark, int(rng.integers(4)))
    material = str(rng.choice(scenes.MATERIALS[1:]))
    return Subject(Obj(shape, colour, material, False, .5, .5, .27, 0., float(rng.random()), looks))


def subject_scenes(number: int, count: int) -> list[Scene]:
    """`count` scenes of a subject, on the seen grounds in turn, at places, sizes and rotations of their own."""
    rng, one = np.random.default_rng([SUBJECT_SEED + number, 1]), subject(number)
    return [Scene((_placed(one.obj, rng),), SEEN[i % len(SEEN)], "photo", int(rng.integers(2 ** 31)))
            for i in range(count)]


def _placed(o: Obj, rng) -> Obj:
    return replace(o, x=float(rng.uniform(.4, .6)), y=float(rng.uniform(.4, .6)), r=float(rng.uniform(.24, .31)),
                   rot=float(rng.uniform(-.12, .12)))


def match(images: torch.Tensor, shown: Subject) -> torch.Tensor:
    """How near each picture (B, H, W, 3) in 0..1 comes to the subject, (B) in dB.

    It is the best PSNR inside the object against exact renders over places, sizes and rotations: the nearest of a grid
    of them, then the nearest around it, in steps of halving length, on half the resolution.
    """
    places, renders = _grid(shown.obj)
    found = []
    for picture in _half(images.float()):
        at = places[int(torch.stack([_error(picture, *r) for r in renders]).argmin())]
        best, step = _error(picture, *_render(at)), 1.
        while step > .1:
            near = [replace(at, **{name: getattr(at, name) + sign * step * size})
                    for name, size in STEPS.items() for sign in (-1, 1)]
            errors = [_error(picture, *_render(o)) for o in near]
            least = min(range(len(near)), key=errors.__getitem__)
            if errors[least] < best:
                at, best = near[least], errors[least]
            else:
                step /= 2
        found.append(-10 * best.log10())
    return torch.stack(found)


def _error(picture, paint, cover) -> torch.Tensor:
    """The mean squared error inside the object."""
    return ((picture - paint).square() * cover).sum() / (3 * cover.sum())


def _half(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), 2)


def _render(o: Obj) -> tuple[torch.Tensor, torch.Tensor]:
    paint, alpha = (torch.from_numpy(np.ascontiguousarray(part))[None] for part in scenes._paint(o))
    return _half(paint.float())[0], _half(alpha.float())[0]


@lru_cache(maxsize=2)
def _grid(o: Obj) -> tuple[list, list]:
    places = [replace(o, x=float(x), y=float(y), r=float(r)) for r in (.2, .24, .28, .32)
              for x in np.arange(.34, .67, .053) for y in np.arange(.34, .67, .053)]
    return places, [_render(place) for place in places]
