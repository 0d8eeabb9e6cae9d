"""Scenes: a caption, its picture, and the exact picture of every edit of the caption.

A scene is data. `Scene.caption()` states part of it ("a photo of a red striped star on a grass background"). It does
not state position, size, phase of the pattern, seed of the ground and looks (looks.py), and an edit keeps them.
Pictures and edits use numpy alone, so equal seeds give equal pictures on every machine.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from . import looks as drawing
from .looks import Looks

SIZE = 128
COLOURS = dict(red=(.86, .12, .14), cyan=(.10, .75, .80), yellow=(.97, .87, .15), green=(.13, .62, .25),
               blue=(.13, .33, .85), purple=(.52, .18, .70), pink=(.97, .55, .75), white=(.97, .97, .97),
               black=(.07, .07, .08))
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
MATERIALS = ("plain", "striped", "dotted", "checkered")
GROUNDS = ("wall", "sky", "grass", "night", "sand", "brick")
STYLES = ("photo", "sketch", "sepia", "mosaic")
POSES = ("upright", "tilted")
EDIT_KINDS = ("object", "add", "delete", "colour", "material", "pose", "background", "style")

CLASHES = {("white", "wall"), ("green", "grass"), ("black", "night"), ("yellow", "sand"), ("red", "brick")}
"""Colours that vanish on a ground. No scene has such a pair."""
ROUND = {"circle", "ring"}
"""Shapes that look the same when tilted. They are never tilted."""
TILT = .5
PAIRS = (((.27, .5), (.73, .5)), ((.5, .27), (.5, .73)))
HELD_OUT_SEED = 2 ** 40
_y, _x = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + .5) / SIZE


@dataclass(frozen=True)
class Obj:
    """One object. The caption states shape, colour, material and tilt.

    x, y, r: centre and radius, in picture widths
    rot: rotation in radians
    phase: phase of the pattern
    looks: what else no caption states
    """
    shape: str
    colour: str
    material: str
    tilted: bool
    x: float
    y: float
    r: float
    rot: float
    phase: float
    looks: Looks = Looks()

    def phrase(self) -> str:
        words = ["tilted"] * self.tilted + [self.colour] + [self.material] * (self.material != "plain") + [self.shape]
        return "a " + " ".join(words)


@dataclass(frozen=True)
class Scene:
    """Up to two objects (the left or upper one first), a ground and a style. `seed` draws the ground.

    light: the side that light comes from, one of LIGHTS; "" casts no shadow
    spot, corner: the colour of a spot on the ground, and which of CORNERS it stands in
    """
    objs: tuple[Obj, ...]
    ground: str
    style: str
    seed: int
    light: str = ""
    spot: str = ""
    corner: int = 0

    def caption(self) -> str:
        body = " and ".join(o.phrase() for o in self.objs)
        return f"a {self.style} of {body + ' on ' if body else ''}a {self.ground} background"


@dataclass(frozen=True)
class Edit:
    """Two scenes with their captions and pictures (SIZE, SIZE, 3) in 0..1. mask (SIZE, SIZE) is 1 where they differ."""
    source: Scene
    target: Scene
    kind: str
    source_text: str
    target_text: str
    source_image: np.ndarray
    target_image: np.ndarray
    mask: np.ndarray


_PHRASE = re.compile(f"a (tilted )?({'|'.join(COLOURS)}) (?:({'|'.join(MATERIALS[1:])}) )?({'|'.join(SHAPES)})")
_CAPTION = re.compile(f"a ({'|'.join(STYLES)}) of (?:(.+) on )?a ({'|'.join(GROUNDS)}) background")


def parse_caption(text: str) -> dict:
    """A caption's style, ground and objects (shape, colour, material, pose). Raises ValueError outside the grammar."""
    m = _CAPTION.fullmatch(text)
    phrases = [_PHRASE.fullmatch(p) for p in m[2].split(" and ")] if m and m[2] else []
    if m is None or None in phrases:
        raise ValueError(f"{text!r} is no caption of a scene; they read like 'a photo of a red star on a grass "
                         "background'")
    objects = [dict(shape=p[4], colour=p[2], material=p[3] or "plain", pose=POSES[bool(p[1])]) for p in phrases]
    return dict(style=m[1], ground=m[3], objects=objects)


def _pick(rng, values, p=None) -> str:
    return str(rng.choice(list(values), p=p))


def _object(rng, ground: str, x: float, y: float, r: float) -> Obj:
    shape = _pick(rng, SHAPES)
    colour = _pick(rng, [c for c in COLOURS if (c, ground) not in CLASHES])
    material = _pick(rng, MATERIALS, [.49, .17, .17, .17])
    tilted = bool(rng.random() < .2) and shape not in ROUND
    return Obj(shape, colour, material, tilted, x, y, r, rng.uniform(-.12, .12), rng.uniform(0, 1))


def _sample(rng, count: int | None = None, style: str | None = None) -> Scene:
    ground = _pick(rng, GROUNDS)
    kind = _pick(rng, ("centre", "side", "pair", "empty"), [.66, .1, .2, .04]) if count is None else \
        ("empty", "centre", "pair")[count]
    objs = []
    if kind == "centre":
        objs = [_object(rng, ground, rng.uniform(.36, .64), rng.uniform(.36, .64), rng.uniform(.22, .32))]
    elif kind != "empty":
        for x, y in PAIRS[rng.random() > .6]:
            x, y = x + rng.uniform(-.04, .04), y + rng.uniform(-.04, .04)
            objs.append(_object(rng, ground, x, y, rng.uniform(.17, .21)))
        if kind == "side":
            del objs[int(rng.integers(2))]
    style = style or _pick(rng, STYLES, [.76, .08, .08, .08])
    return Scene(tuple(objs), ground, style, int(rng.integers(2 ** 31)))


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene like those of the training: mostly one object, mostly a photo."""
    return _sample(rng)


def held_out_scene(seed: int) -> Scene:
    """Scene number `seed` of a range that training never uses."""
    return _sample(np.random.default_rng(HELD_OUT_SEED + seed))


def edit_scene(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """The scene after one edit of a `kind` (EDIT_KINDS). What the caption does not state stays.

    colour, object, background, style: change exactly one word
    material: changes one word between patterns, and adds or drops one to or from "plain"
    pose: adds or drops "tilted"
    add, delete: a whole phrase

    Raises ValueError if the scene has nothing that the edit could change.
    """
    if kind not in EDIT_KINDS:
        raise ValueError(f"{kind!r} is no kind of edit; choose one of {', '.join(EDIT_KINDS)}")
    if kind == "style":
        return replace(scene, style=_other(rng, STYLES, scene.style))
    if kind == "background":
        used = {o.colour for o in scene.objs}
        free = [g for g in GROUNDS if not any((c, g) in CLASHES for c in used)]
        return replace(scene, ground=_other(rng, free, scene.ground))
    if kind == "add":
        return _add(scene, rng)
    if not scene.objs:
        raise ValueError(f"edit {kind!r} needs an object, and the scene {scene.caption()!r} has none")
    i = int(rng.integers(len(scene.objs)))
    new = () if kind == "delete" else (_changed(scene.objs[i], kind, scene.ground, rng),)
    return replace(scene, objs=scene.objs[:i] + new + scene.objs[i + 1:])


def _other(rng, values, current) -> str:
    return _pick(rng, [v for v in values if v != current])


def _changed(o: Obj, kind: str, ground: str, rng) -> Obj:
    if kind == "object":
        return replace(o, shape=_other(rng, [s for s in SHAPES if not (o.tilted and s in ROUND)], o.shape))
    if kind == "colour":
        return replace(o, colour=_other(rng, [c for c in COLOURS if (c, ground) not in CLASHES], o.colour))
    if kind == "material":
        return replace(o, material=_other(rng, MATERIALS, o.material))
    if o.shape in ROUND:
        raise ValueError(f"edit 'pose' needs a shape that is not round, and {o.phrase()!r} is")
    return replace(o, tilted=not o.tilted)


def _add(scene: Scene, rng) -> Scene:
    if not scene.objs:
        x, y, r = rng.uniform(.36, .64), rng.uniform(.36, .64), rng.uniform(.22, .32)
        return replace(scene, objs=(_object(rng, scene.ground, x, y, r),))
    o = scene.objs[0]
    for pair in PAIRS:
        for i, (x, y) in enumerate(pair):
            if len(scene.objs) == 1 and max(abs(o.x - x), abs(o.y - y)) <= .04:
                new = _object(rng, scene.ground, *pair[1 - i], rng.uniform(.17, .21))
                return replace(scene, objs=(o, new) if i == 0 else (new, o))
    raise ValueError(f"edit 'add' needs room for another object, and {scene.caption()!r} has none")


def held_out_edit(seed: int, kind: str) -> Edit:
    """Edit number `seed` of one kind, on a held-out photo. Every seed and kind is possible.

    The scene has one object. For delete it has two, and for add it has one beside an empty half. Object, colour,
    material (between patterns), background and style edits change exactly one word of the caption.
    """
    if kind not in EDIT_KINDS:
        raise ValueError(f"{kind!r} is no kind of edit; choose one of {', '.join(EDIT_KINDS)}")
    rng = np.random.default_rng([HELD_OUT_SEED + seed, EDIT_KINDS.index(kind)])
    source = _sample(rng, 2 if kind in ("add", "delete") else 1, "photo")
    o = source.objs[0]
    if kind == "add":
        i = int(rng.integers(2))
        source, target = replace(source, objs=source.objs[i:i + 1]), source
    elif kind == "material":
        first, second = rng.choice(MATERIALS[1:], 2, replace=False)
        source, target = (replace(source, objs=(replace(o, material=str(m)),)) for m in (first, second))
    else:
        if kind == "pose" and o.shape in ROUND:
            source = replace(source, objs=(replace(o, shape=_pick(rng, [s for s in SHAPES if s not in ROUND])),))
        target = edit_scene(source, kind, rng)
    a, b = render(source), render(target)
    return Edit(source, target, kind, source.caption(), target.caption(), a, b, (a != b).any(-1).astype(np.float32))


def render(scene: Scene) -> np.ndarray:
    """The scene's picture, float32 (SIZE, SIZE, 3) in 0..1."""
    image = _ground(scene.ground, scene.seed)
    if scene.spot:
        u, v = (.5 + .4 * side for side in drawing.CORNERS[scene.corner])
        alpha = _cover(np.hypot(_x - np.float32(u), _y - np.float32(v)) - np.float32(.065), SIZE)
        image = image * (1 - alpha) + np.array(COLOURS[scene.spot], np.float32) * alpha
    for o in scene.objs if scene.light else ():
        image = image * (1 - np.float32(.5) * _shadow(o, scene.light))
    for o in scene.objs:
        paint, alpha = _paint(o, scene.light)
        image = image * (1 - alpha) + paint * alpha
    return np.ascontiguousarray(_stylise(np.clip(image, 0, 1), scene.style), np.float32)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the shape's edge in radii. It is negative inside and roughly Euclidean near the edge."""
    if shape == "circle":
        return np.hypot(x, y) - .9
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - .78
    if shape == "triangle":
        return np.maximum(np.maximum(y - .62, .866 * x - .5 * y - .55), -.866 * x - .5 * y - .55)
    if shape == "star":
        return np.hypot(x, y) - .48 - .52 * abs(np.arctan2(x, -y) % (.4 * np.pi) / (.2 * np.pi) - 1)
    if shape == "heart":
        u, v = abs(x) * 1.15, .25 - y * 1.1
        return np.hypot(u, v - .62 * np.sqrt(u)) - .85
    if shape == "ring":
        return abs(np.hypot(x, y) - .68) - .22
    if shape == "cross":
        return np.minimum(np.maximum(abs(x) - .92, abs(y) - .3), np.maximum(abs(x) - .3, abs(y) - .92))
    return np.maximum(np.hypot(x, y) - .9, .8 - np.hypot(x - .5, y + .1))    # moon


def _frame(o: Obj, dx: float = 0, dy: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (SIZE, SIZE) in radii in the object's frame, shifted by (dx, dy) picture widths."""
    angle = o.rot + TILT * o.tilted
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = _x - np.float32(o.x + dx), _y - np.float32(o.y + dy)
    return (dx * c + dy * s) / np.float32(o.r), (dy * c - dx * s) / np.float32(o.r)


def _cover(distance: np.ndarray, pixels: float) -> np.ndarray:
    """Coverage (SIZE, SIZE, 1) at a distance to the edge, whose unit has this many pixels."""
    return np.clip(.5 - distance * pixels, 0, 1)[..., None]


def _paint(o: Obj, light: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Colour (SIZE, SIZE, 3) and coverage (SIZE, SIZE, 1) of an object."""
    x, y = _frame(o)
    alpha = _cover(_distance(o.shape, x, y), o.r * SIZE)
    bright = o.colour in ("white", "yellow", "pink", "cyan")
    usual = (.25, .25, .28) if bright else (.95, .95, .95)
    second = np.array(COLOURS.get(o.looks.second, usual), np.float32)
    share = _pattern(o.material, x / np.float32(o.looks.period), y / np.float32(o.looks.period), o.phase)[..., None]
    shade = (1 - .18 * np.clip((x + y) * .5, -1, 1))[..., None]
    paint = (np.array(COLOURS[o.colour], np.float32) * (1 - share) + second * share) * shade
    if o.looks != Looks():
        paint, alpha = _detailed(o, x, y, paint, alpha, bright)
    if light:
        side = (_x - np.float32(o.x)) / np.float32(o.r) * (1 if light == "right" else -1)
        paint = np.clip(paint * (1 + np.float32(.4) * np.clip(side, -1, 1))[..., None], 0, 1)
    return paint, alpha


def _detailed(o: Obj, x, y, paint, alpha, bright: bool):
    """An object's paint and coverage with its looks."""
    if o.looks.grain:
        paint = paint * _grain(o.looks.grain)
    if o.looks.arms:
        arms = _cover(drawing.arms(o.looks, x, y), o.r * SIZE) * (1 - alpha)
        colour = np.array(COLOURS[o.colour], np.float32) * np.float32(.85)
        paint, alpha = np.where(arms > alpha, colour, paint), alpha + arms
    for colour, distance in drawing.over(o.looks, not bright, COLOURS, x, y):
        top = _cover(distance, o.r * SIZE)
        both = top + alpha * (1 - top)
        paint = (np.array(colour, np.float32) * top + paint * alpha * (1 - top)) / np.maximum(both, np.float32(1e-6))
        alpha = both
    return paint, alpha


def _shadow(o: Obj, light: str) -> np.ndarray:
    """Share (SIZE, SIZE, 1) of the light that an object keeps from the ground."""
    x, y = _frame(o, .09 * (-1 if light == "right" else 1), .06)
    return _cover(np.minimum(_distance(o.shape, x, y), drawing.arms(o.looks, x, y)), o.r * SIZE / 7)


def covered(o: Obj) -> np.ndarray:
    """(SIZE, SIZE) in {0, 1}: 1 for pixels that an object covers by more than half."""
    return (_paint(o)[1][..., 0] > .5).astype(np.float32)


def _pattern(material: str, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Share of the second colour, in 0..1."""
    if material == "striped":
        return np.clip(np.sin((x * 1.7 + phase) * 2 * np.pi) * 3 + .2, 0, 1)
    if material == "dotted":
        return np.clip((.29 - np.hypot((x * 1.8 + phase) % 1 - .5, (y * 1.8 + phase) % 1 - .5)) * 10 + .5, 0, 1)
    if material == "checkered":
        return (np.floor(x * 1.8 + phase) + np.floor(y * 1.8 + phase)) % 2
    return np.zeros_like(x)


def _smooth(g, n: int) -> np.ndarray:
    """Value noise: an n by n normal grid, smoothly interpolated to (SIZE, SIZE)."""
    z = g.standard_normal((n, n)).astype(np.float32)
    i = np.linspace(0, n - 1, SIZE)
    low = np.floor(i).astype(int).clip(0, n - 2)
    f = (i - low).astype(np.float32)
    f = f * f * (3 - 2 * f)
    rows = z[low] * (1 - f)[:, None] + z[low + 1] * f[:, None]
    return rows[:, low] * (1 - f) + rows[:, low + 1] * f


@lru_cache(maxsize=16)
def _grain(seed: int) -> np.ndarray:
    """A texture (SIZE, SIZE, 1) around 1."""
    return (1 + np.float32(.1) * _smooth(np.random.default_rng(seed), 40))[..., None]


@lru_cache(maxsize=16)
def _ground(kind: str, seed: int) -> np.ndarray:
    g = np.random.default_rng(seed)
    if kind == "wall":
        return np.full((SIZE, SIZE, 3), .90, np.float32) + .03 * _smooth(g, 4)[..., None]
    if kind == "sky":
        base = np.array((.45, .70, .96), np.float32) + .12 * (_y - .5)[..., None]
        cloud = np.clip(_smooth(g, 6) - .55, 0, 1)[..., None] * .9
        return base * (1 - cloud) + cloud
    if kind == "grass":
        return np.array((.36, .66, .22), np.float32) * (1 + .16 * _smooth(g, 16) + .08 * _smooth(g, 5))[..., None]
    if kind == "night":
        base = np.array((.04, .05, .16), np.float32) + .02 * _smooth(g, 4)[..., None]
        for x, y, b in g.uniform((0, 0, .5), 1, (14, 3)).astype(np.float32):
            base = base + b * np.exp(-((_x - x) ** 2 + (_y - y) ** 2) * SIZE ** 2 / 3)[..., None]
        return base
    if kind == "sand":
        return np.array((.90, .80, .52), np.float32) + \
            (.05 * _smooth(g, 20) + .03 * np.sin((_y * 6 + _smooth(g, 4) * .3) * 6.28))[..., None]
    u, v = g.uniform(0, 1, 2).astype(np.float32)
    row = _y * 8 + v
    mortar = (((_x * 4 + u + .5 * (np.floor(row) % 2)) % 1 < .06) | (row % 1 < .12))[..., None]
    brick = np.where(mortar, np.array((.82, .80, .76), np.float32), np.array((.66, .28, .20), np.float32))
    return brick * (1 + .05 * _smooth(g, 8))[..., None]


def _stylise(image: np.ndarray, style: str) -> np.ndarray:
    if style == "sketch":
        edges = sum(abs(np.diff(image, axis=a, prepend=image.take([0], a))).max(-1) for a in (0, 1))
        tone = .15 * (1 - image.mean(-1))
        return np.repeat(np.clip(1 - np.clip(edges * 2, 0, 1) - tone, 0, 1)[..., None], 3, -1) * .97
    if style == "sepia":
        grey = image.mean(-1, keepdims=True)
        return np.clip(.75 * (grey * np.array((1.05, .86, .62), np.float32) + .03) + .25 * image, 0, 1)
    if style == "mosaic":
        return image.reshape(SIZE // 4, 4, SIZE // 4, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    return image


def visible(scene: Scene) -> dict[str, str]:
    """What a picture of the scene shows: attribute -> name. "colour#2" is the second
    object's. A sketch has no colour."""
    shown = dict(ground=scene.ground, style=scene.style, count=str(len(scene.objs)))
    for o, suffix in zip(scene.objs, ("", "#2")):
        values = dict(shape=o.shape, colour=o.colour, material=o.material, pose=POSES[o.tilted])
        shown.update({k + suffix: v for k, v in values.items() if not (k == "colour" and scene.style == "sketch")})
    return shown
