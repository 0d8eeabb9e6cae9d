"""Hard edits: held-out edits of scenes that show much that no caption states. An edit has to keep it (details.py)."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import scenes
from .looks import ARMS, FACED, FACES, HUES, LIGHTS, PERIODS, Looks
from .scenes import Edit, Obj, Scene

HARD_SEED = 2 ** 42
UNSEEN = dict(zip(scenes.SHAPES, scenes.COLOURS))
"""A colour for each shape. The training of a model by `rich_scene` never shows the two together."""
SHOWN = "second", "period", "mark", "face", "arms", "light", "spot"
"""Looks that a hard edit's scene may have."""
LOOKS = *SHOWN[:5], "grain"
"""Looks of an object."""
TWINS = .3
"""Share of the edits of one object that have two equal ones."""


def hard_edit(number: int, kind: str) -> Edit:
    """Hard edit `number` of one kind. Every number and kind is possible, and numbers share nothing.

    The scene is a photo, and two in three have one of the looks SHOWN. Captions stay in the grammar. Object, colour,
    material and pose edits change one of two equal objects in some of the scenes; add and delete have two objects that
    differ. The edit's target keeps all looks of what stays. What an add brings is plain and has none. No style becomes
    a mosaic, whose squares the autoencoder smears.
    """
    if kind not in scenes.EDIT_KINDS:
        raise ValueError(f"{kind!r} is no kind of edit; choose one of {', '.join(scenes.EDIT_KINDS)}")
    rng = np.random.default_rng([HARD_SEED + number, scenes.EDIT_KINDS.index(kind)])
    ground = _pick(rng, scenes.GROUNDS)
    twins = kind in ("object", "colour", "material", "pose") and rng.random() < TWINS
    count = 2 if twins or kind in ("add", "delete") else 1
    objs = [_object(rng, ground, kind, *place) for place in _places(rng, count)]
    if twins:
        words = {n: getattr(objs[0], n) for n in ("shape", "colour", "material", "tilted")}
        objs[1] = replace(objs[1], **words)
    elif count == 2:
        while objs[1].colour == objs[0].colour:
            objs[1] = replace(objs[1], colour=_pick(rng, _free(ground)))
    chosen = _chosen(rng, objs)
    objs = tuple(replace(o, looks=_looks(rng, o, ground, chosen)) for o in objs)
    spot = _pick(rng, [c for c in _free(ground, HUES) if c not in {o.colour for o in objs}])
    source = Scene(objs, ground, "photo", int(rng.integers(2 ** 31)), _pick(rng, LIGHTS) if "light" in chosen else "",
                   spot if "spot" in chosen else "", int(rng.integers(4)))
    source, target = _edited(source, kind, rng)
    a, b = scenes.render(source), scenes.render(target)
    return Edit(source, target, kind, source.caption(), target.caption(), a, b, (a != b).any(-1).astype(np.float32))


def an_edit(seed: int, kind: str, hard: bool = False) -> Edit:
    """Edit number `seed` of one kind, of a held-out scene or of a hard one."""
    return (hard_edit if hard else scenes.held_out_edit)(seed, kind)


def _edited(scene: Scene, kind: str, rng) -> tuple[Scene, Scene]:
    """The scenes before and after."""
    if kind == "add":
        i = int(rng.integers(2))
        new = replace(scene.objs[i], material="plain", looks=Looks())
        whole = replace(scene, objs=scene.objs[:i] + (new,) + scene.objs[i + 1:])
        return replace(whole, objs=scene.objs[1 - i:2 - i]), whole
    if kind == "background":
        used = {scene.spot, *(c for o in scene.objs for c in (o.colour, o.looks.mark))}
        free = [g for g in scenes.GROUNDS if g != scene.ground and not any((c, g) in scenes.CLASHES for c in used)]
        return scene, replace(scene, ground=_pick(rng, free))
    if kind == "style":
        return scene, replace(scene, style=_pick(rng, ("sketch", "sepia")))
    if kind == "delete":
        return scene, scenes.edit_scene(scene, kind, rng)
    i = int(rng.integers(len(scene.objs)))
    return scene, replace(scene, objs=scene.objs[:i] + (_changed(scene.objs[i], kind, scene, rng),)
                          + scene.objs[i + 1:])


def _changed(o: Obj, kind: str, scene: Scene, rng) -> Obj:
    if kind == "object":
        taken = {o.shape, *(scenes.ROUND if o.tilted else ())}
        return replace(o, shape=_pick(rng, [s for s in (FACED if o.looks.face else scenes.SHAPES) if s not in taken]))
    if kind == "colour":
        taken = {o.colour, o.looks.second, o.looks.mark, scene.spot}
        return replace(o, colour=_pick(rng, [c for c in _free(scene.ground) if c not in taken]))
    if kind == "material":
        return replace(o, material=_pick(rng, [m for m in scenes.MATERIALS[1:] if m != o.material]))
    return replace(o, tilted=not o.tilted)


def _object(rng, ground: str, kind: str, x: float, y: float, r: float) -> Obj:
    """An object that the kind of edit can change."""
    material = _pick(rng, scenes.MATERIALS[1:]) if kind == "material" or rng.random() < .5 else "plain"
    faced = material == "plain" and rng.random() < .75
    shape = _pick(rng, [s for s in (FACED if faced else scenes.SHAPES) if not (kind == "pose" and s in scenes.ROUND)])
    new = UNSEEN[shape] in _free(ground) and rng.random() < .25
    colour = UNSEEN[shape] if new else _pick(rng, _free(ground))
    tilted = bool(rng.random() < .2) and shape not in scenes.ROUND
    return Obj(shape, colour, material, tilted, x, y, r, rng.uniform(-.12, .12), rng.uniform(0, 1))


def _chosen(rng, objs) -> list[str]:
    """The looks of a scene: one, or in a third of the scenes none."""
    if rng.random() < 1 / 3:
        return []
    possible = [n for n in SHOWN if all(_fits(n, o) for o in objs)]
    return [_pick(rng, possible)]


def _looks(rng, o: Obj, ground: str, chosen) -> Looks:
    """The chosen looks, as far as an object can have them."""
    mark, second = rng.choice([c for c in _free(ground, HUES) if c != o.colour], 2, replace=False).tolist()
    could = {n: (str(rng.choice(values))) for n, values in (("face", FACES), ("arms", ARMS))}
    could |= dict(second=second, period=float(rng.choice(PERIODS[1:])), mark=mark, grain=int(rng.integers(1, 2 ** 31)))
    return Looks(corner=int(rng.integers(4)), **{n: could[n] for n in LOOKS if n in chosen and _fits(n, o)})


def _fits(look: str, o: Obj) -> bool:
    patterned = o.material != "plain"
    return {"second": patterned, "period": patterned, "face": not patterned and o.shape in FACED,
            "arms": o.r > .21}.get(look, True)


def rich_scene(rng: np.random.Generator) -> Scene:
    """A scene for the training of a model that knows light, looks and spots. It has no pair of UNSEEN."""
    scene, dressed = scenes.sample_scene(rng), []
    for o in scene.objs:
        if UNSEEN[o.shape] == o.colour:
            o = replace(o, colour=_pick(rng, [c for c in _free(scene.ground) if c != o.colour]))
        chosen = [n for n in LOOKS if rng.random() < .5] if rng.random() < .6 else ()
        dressed.append(replace(o, looks=_looks(rng, o, scene.ground, chosen)))
    if len(dressed) == 2 and rng.random() < .15:
        first, second = dressed
        words = dict(shape=first.shape, colour=first.colour, material=first.material, tilted=first.tilted)
        looks = second.looks if second.looks == Looks() else first.looks
        dressed[1] = replace(second, **words, looks=looks)
    spot = _pick(rng, [c for c in _free(scene.ground, HUES)]) if rng.random() < .3 else ""
    light = _pick(rng, LIGHTS) if rng.random() < .75 else ""
    return replace(scene, objs=tuple(dressed), light=light, spot=spot, corner=int(rng.integers(4)))


def _places(rng, count: int) -> list[tuple[float, float, float]]:
    if count == 1:
        return [(rng.uniform(.4, .6), rng.uniform(.42, .58), rng.uniform(.25, .29))]
    return [(x + rng.uniform(-.02, .02), y + rng.uniform(-.02, .02), rng.uniform(.19, .21))
            for x, y in scenes.PAIRS[int(rng.integers(2))]]


def _free(ground: str, colours=scenes.COLOURS) -> list[str]:
    return [c for c in colours if (c, ground) not in scenes.CLASHES]


def _pick(rng, values) -> str:
    return str(rng.choice(list(values)))
