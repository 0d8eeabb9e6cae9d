"""Draws web/example.jpg, the picture with which the Start-here templates open: an apple and a cup on a table. In
web/painted.webp the cup is painted over, as Load Image's MaskEditor does it: what is see-through is the mask.

It is rendered here by tracing rays through a few solids, so that it is free to ship. It is no photograph.
"""
import sys
from pathlib import Path

import numpy as np

PICTURE = Path(__file__).parents[1] / "web" / "example.jpg"
PAINTED = PICTURE.with_name("painted.webp")
SIDE, STEPS, FAR = 768, 90, 12.0
APPLE, CUP = np.array((-.42, 0, .25), np.float32), np.array((.48, 0, -.15), np.float32)
LIGHT = np.array((-.62, .66, .42), np.float32)
TABLE, SKIN, STEM, CLAY = range(4)


def solids(p):
    """Distances [4, n] of points [n, 3] to the table, the apple, its stem and the cup."""
    x, y, z = (p - APPLE).T
    around = np.hypot(x, z)
    lobes = .012 * np.cos(5 * np.arctan2(z, x)) * (.4 - y)
    skin = np.hypot(around - .13 - .05 * (y - .4), (y - .38) * .86) - .31 + lobes
    up = np.clip((y - .58) / .26, 0, 1)
    stem = np.sqrt((x - .06 * up ** 2) ** 2 + (y - .58 - .26 * up) ** 2 + z ** 2) - .018
    x, y, z = (p - CUP).T
    around = np.hypot(x, z)
    wide = .30 + .05 * y
    wall = np.hypot(np.maximum(abs(around - wide) - .008, 0), np.maximum(abs(y - .37) - .36, 0)) - .018
    floor = np.hypot(np.maximum(around - .28, 0), np.maximum(abs(y - .05) - .02, 0)) - .018
    handle = np.hypot(np.hypot(x - .36, (y - .40) * .85) - .16, z) - .035
    return np.stack((p[:, 1], skin, stem, np.minimum(np.minimum(wall, floor), np.maximum(handle, wide - x))))


def distance(p):
    return solids(p).min(0)


def traced(start, way):
    """How far each ray goes before it meets something, and whether it does."""
    far, going = np.zeros(len(way), np.float32), np.arange(len(way))
    for _ in range(STEPS):
        near = distance(start[going] + way[going] * far[going, None])
        far[going] += .9 * near
        going = going[(near > 5e-4) & (far[going] < FAR)]
    return far, far < FAR


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def normals(p):
    ways = np.eye(3, dtype=np.float32) * 2e-3
    return unit(np.stack([distance(p + way) - distance(p - way) for way in ways], -1))


def shadow(p):
    """The share of a wide light that reaches each point."""
    seen, far = np.ones(len(p), np.float32), np.full(len(p), .03, np.float32)
    for _ in range(40):
        near = distance(p + LIGHT / np.linalg.norm(LIGHT) * far[:, None])
        seen, far = np.minimum(seen, .5 + 4.5 * near / far), far + np.clip(near, .02, .2)
    seen = np.clip(seen, 0, 1)
    return seen * seen * (3 - 2 * seen)


def openness(p, n):
    """How little of the sky is hidden close by."""
    return np.clip(1 - 1.6 * sum((h - distance(p + n * h)) / 2 ** i for i, h in enumerate((.04, .1, .2, .36))), .12, 1)


def noise(x, y, seed):
    """Smooth noise in 0..1 on a plane."""
    table = np.random.default_rng(seed).random((64, 64), np.float32)
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    corner = [[table[(i + a) % 64, (j + b) % 64] for b in (0, 1)] for a in (0, 1)]
    return (corner[0][0] * (1 - v) + corner[0][1] * v) * (1 - u) + (corner[1][0] * (1 - v) + corner[1][1] * v) * u


def wood(p):
    x, z = p[:, 0], p[:, 2]
    plank = np.floor(z / .55)
    grain = noise(x * 1.2 + 7 * plank, z * 9, 1) * 5 + noise(x * 2 + plank, z * 40, 2) * 1.2
    lines = .5 + .5 * np.sin(2 * np.pi * grain)
    tone = .75 + .18 * noise(plank * 3.7, plank * 1.3, 3) + .16 * lines + .10 * noise(x * 9, z * 160, 4)
    tone *= 1 - .6 * np.exp(-((z / .55 - plank) * 42) ** 2)
    return tone[:, None] * np.array((.46, .28, .145), np.float32)


def skin(p):
    x, y, z = (p - APPLE).T
    angle = np.arctan2(z, x)
    streak = noise(angle * 12, y * 2, 5) * .6 + noise(angle * 40, y * 5, 6) * .4
    warm = np.clip(2 * (y - .58) + 1.6 * (streak - .55), 0, 1)[:, None] ** 1.3
    spots = (noise(angle * 26, y * 60, 7) > .93)[:, None] * .08
    return np.array((.52, .028, .03), np.float32) * (1 - warm) + np.array((.72, .36, .09), np.float32) * warm + spots


def colours(p, what):
    found = np.empty_like(p)
    for solid, paint in (TABLE, wood), (SKIN, skin):
        found[what == solid] = paint(p[what == solid])
    found[what == STEM], found[what == CLAY] = (.16, .10, .05), (.68, .67, .63)
    return found


def lit(start, way):
    far, met = traced(start, way)
    wall = noise(way[:, 0] * 5 + 9, way[:, 1] * 5, 8)[:, None] * .08 + .92
    light = np.exp(-5 * ((way[:, 0] + .30) ** 2 + (way[:, 1] - .02) ** 2))[:, None]
    seen = wall * (np.array((.13, .15, .17), np.float32) + light * np.array((.34, .30, .22), np.float32))
    p = (start + way * far[:, None])[met]
    what, n = solids(p).argmin(0), normals(p)
    to_light = unit(LIGHT)
    sun = np.clip(n @ to_light, 0, 1) * shadow(p + n * .01)
    sky = openness(p, n) * (.62 + .38 * n[:, 1])
    paint = colours(p, what)
    made = paint * (sun[:, None] * np.array((1.75, 1.62, 1.42), np.float32)
                    + sky[:, None] * np.array((.42, .46, .52), np.float32))
    half = unit(to_light - way[met])
    gloss, sharp = np.array((.05, .45, .05, .5))[what], np.array((12, 90, 10, 160))[what]
    rim = (1 - np.clip(-(n * way[met]).sum(1), 0, 1)) ** 5
    shine = gloss * sun * np.clip((n * half).sum(1), 0, 1) ** sharp * 2 + (.25 * rim + .02) * (gloss > .3) * sky
    made += shine[:, None]
    haze = np.clip((far[met] - 3.4) / 6, 0, 1)[:, None] ** .8
    seen[met] = made * (1 - haze) + seen[met] * haze
    cup = np.zeros(len(way), bool)
    cup[met] = (what == CLAY) & (distance(p) < .01)  # some rays end in the air
    return seen, far, cup


def main() -> int:
    from PIL import Image, ImageChops, ImageFilter
    eye = np.array((.05, 1.15, 3.1), np.float32)
    ahead = unit(np.array((.03, .30, 0), np.float32) - eye)
    right = unit(np.cross(ahead, (0, 1, 0))).astype(np.float32)
    up = np.cross(right, ahead)
    picture, depth = np.zeros((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, SIDE), np.float32)
    painted = np.zeros((SIDE, SIDE), bool)
    shifts = ((.25, .25), (.75, .75), (.25, .75), (.75, .25))  # of each pixel's rays
    for dx, dy in shifts:
        v, u = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        u, v = ((u + dx) / SIDE - .5) * .72, (.5 - (v + dy) / SIDE) * .72
        way = unit(ahead + u[..., None] * right + v[..., None] * up).reshape(-1, 3).astype(np.float32)
        seen, far, cup = lit(np.broadcast_to(eye, way.shape), way)
        picture += seen.reshape(SIDE, SIDE, 3) / len(shifts)
        depth = np.maximum(depth, far.reshape(SIDE, SIDE))
        painted |= cup.reshape(SIDE, SIDE)
    sharp = Image.fromarray((255 * np.clip(picture / (.9 + picture) * 1.55, 0, 1) ** (1 / 2.2)).astype(np.uint8))
    focus = Image.fromarray((255 * np.clip((depth - 3.9) / 2.5, 0, 1)).astype(np.uint8))
    sharp.paste(sharp.filter(ImageFilter.GaussianBlur(7)), mask=focus.filter(ImageFilter.GaussianBlur(4)))
    grain = np.random.default_rng(0).normal(0, 2.2, (SIDE, SIDE, 1))
    grainy = Image.fromarray(np.clip(np.asarray(sharp) + grain, 0, 255).astype(np.uint8))
    grainy.save(PICTURE, quality=86, optimize=True)
    mask = Image.fromarray(255 * painted.astype(np.uint8)).filter(ImageFilter.MaxFilter(25))
    grainy.putalpha(ImageChops.invert(mask))
    grainy.save(PAINTED, quality=90, exact=True)  # exact: what is see-through keeps its colours
    for drawn in PICTURE, PAINTED:
        print(drawn, drawn.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
