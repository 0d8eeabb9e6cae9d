"""What a scene shows and no caption states: second colours, periods, marks, faces, arms, texture, light, a spot.

An edit keeps all of it. By default nothing of it is drawn. Places are in radii of the object, in the frame that turns
with it; y points down.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HUES = ("red", "yellow", "blue", "white", "black")
"""Colours of marks, spots and patterns that stay apart at any size."""
PERIODS = (1., 1.5, 2.2)
FACES = ("smiling", "frowning", "open")
ARMS = ("raised", "lowered", "left", "right")
"""Both arms up, both down, or only the one that stands on this side up."""
LIGHTS = ("left", "right")
CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
"""Of an object, where its mark stands, and of the picture, where its spot stands."""
FACED = ("circle", "square", "triangle", "heart")
"""Shapes with room for a face."""
INK, PAPER = (.06, .06, .08), (.97, .97, .97)


@dataclass(frozen=True)
class Looks:
    """An object's looks that its phrase does not state.

    second: the pattern's second colour; "" is white, or dark grey on light colours
    period: the pattern's period; 1 is the usual one
    mark, corner: a mark's colour, and which of CORNERS it stands at
    face: one of FACES
    arms: one of ARMS
    grain: seed of a texture
    """
    second: str = ""
    period: float = 1.
    mark: str = ""
    corner: int = 0
    face: str = ""
    arms: str = ""
    grain: int = 0


def arms(looks: Looks, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the arms in radii."""
    found = np.full_like(x, 9)
    for side in (-1, 1) if looks.arms else ():
        up = looks.arms == "raised" or looks.arms == ("left" if side < 0 else "right")
        found = np.minimum(found, _line(x * side, y, (.45, .1), (1.2, -.55 if up else .6)) - .13)
    return found


def over(looks: Looks, dark: bool, colours: dict, x: np.ndarray, y: np.ndarray) -> list:
    """[(colour, distance)] of what is drawn over an object, the last on top; dark: whether the object is."""
    drawn = []
    if looks.mark:
        at = CORNERS[looks.corner]
        drawn.append((colours[looks.mark], np.hypot(x - .6 * at[0], y - .55 * at[1]) - .27))
    if looks.face:
        ink = PAPER if dark else INK
        drawn += [(ink, np.hypot(x - side * .27, y + .16) - .14) for side in (-1, 1)]
        drawn.append((ink, _mouth(looks.face, x, y)))
    return drawn


def _line(x, y, a, b) -> np.ndarray:
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - a[0] - t * dx, y - a[1] - t * dy)


def _mouth(face: str, x, y) -> np.ndarray:
    if face == "open":
        return np.hypot(x, y - .32) - .19
    bend = 1 if face == "smiling" else -1
    curve = .32 + bend * .14 * (1 - 2 * (x / .4) ** 2)
    return np.maximum(abs(y - curve) - .1, abs(x) - .42)
