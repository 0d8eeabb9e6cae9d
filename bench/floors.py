"""Floors and ceilings of an edit: pictures that no editor made, measured as an editor's are.

fresh noise: the target prompt sampled from fresh noise, without the source. An editor that scores no better uses
    nothing of the source.
another picture: a scene with the target's caption, of which everything that the caption does not say is drawn anew.
identifiable: a perfect sampler. It keeps all that the source shows and draws anew what the source hides: the looks of a
    thing that is new, and the ground behind what was there.
ideal edit: the exact target's latent inside the true mask, the source's outside.
ghosts: source and exact target mixed. Nobody wants one, so what a reader takes for a success here is its own error.
All but the first pass through the autoencoder, so none is better than that.

The hidden, by kind of edit: add, the new object's place within its half, size, rotation and phase; background, the new
ground; material, the phase of the new pattern; object, pose and delete, the ground behind the old object; colour and
style, nothing.
"""
from dataclasses import replace

import comfy.sample
import numpy as np
import torch
from torch import Tensor

from ..miniature.looks import Looks
from ..miniature.scenes import PAIRS, SIZE, Edit, Obj, Scene, covered, render

GHOSTS = {f"ghost of {share:.0%}": share for share in (0.3, 0.5, 0.7)}  # shares of the exact target
SEED = 2 ** 41  # of what is drawn anew, apart from the seeds of training and of held-out scenes


def ghosts(scenes, truth: Tensor) -> dict[str, Tensor]:
    """{name: pictures [B,H,W,3]}; truth: the exact targets."""
    _, _, vae = scenes.parts
    return {name: vae.decode(vae.encode(torch.lerp(scenes.pictures, truth, share))) for name, share in GHOSTS.items()}


def anew(o: Obj, x: float, y: float, lone: bool, rng: np.random.Generator) -> Obj:
    """An object of the same words near (x, y), its other facts drawn as the training's scenes have them."""
    spread, sizes = (0.14, (0.22, 0.32)) if lone else (0.04, (0.17, 0.21))
    return replace(o, x=x + rng.uniform(-spread, spread), y=y + rng.uniform(-spread, spread), r=rng.uniform(*sizes),
                   rot=rng.uniform(-0.12, 0.12), phase=rng.uniform(0, 1), looks=Looks())


def another_scene(edit: Edit, number: int) -> Scene:
    """Another scene with the target's caption. It has no looks that the caption does not state."""
    rng, objs = np.random.default_rng([SEED, number]), edit.target.objs
    places = [(0.5, 0.5)] if len(objs) == 1 else PAIRS[int(rng.integers(len(PAIRS)))]
    objs = tuple(anew(o, *place, len(objs) == 1, rng) for o, place in zip(objs, places))
    return replace(edit.target, objs=objs, seed=int(rng.integers(2 ** 31)), light="", spot="")


def alone(edit: Edit) -> Scene:
    """What the target has and the source lacks, in its place on other ground."""
    objs = tuple(o for o in edit.target.objs if o not in edit.source.objs)
    return replace(edit.target, objs=objs, seed=edit.target.seed + 1)


def identifiable(edit: Edit, number: int) -> np.ndarray:
    """[H,W,3] in 0..1: the target by a perfect sampler."""
    rng, target, kept = np.random.default_rng([SEED, number]), edit.target, edit.source.objs
    other = int(rng.integers(2 ** 31))
    if edit.kind == "background":
        return render(replace(target, seed=other))
    if edit.kind in ("add", "material"):
        target = replace(target, objs=tuple(o if o in kept else _new(o, edit.kind, rng) for o in target.objs))
    before, after = (_cells(objs) for objs in (kept, target.objs))
    hidden = (before * (1 - after))[..., None]
    return np.float32(render(target) * (1 - hidden) + render(replace(target, seed=other)) * hidden)


def _new(o, kind, rng) -> Obj:
    """What a source that lacks an object, or its pattern, leaves open of it."""
    if kind == "material":
        return replace(o, phase=rng.uniform(0, 1))
    half = min((place for pair in PAIRS for place in pair), key=lambda at: (at[0] - o.x) ** 2 + (at[1] - o.y) ** 2)
    return anew(o, *half, False, rng)


def _cells(objs) -> np.ndarray:
    """[H,W] in {0, 1}: where any of some objects lies."""
    return np.max([np.zeros((SIZE, SIZE), np.float32), *map(covered, objs)], 0)


def fresh_noise(scenes, cfg: float, steps: int, first: int) -> Tensor:
    """[B,H,W,3] in 0..1: the target prompts sampled by euler from fresh noise; first: the number of the first case."""
    model, _, vae = scenes.parts
    latent = torch.zeros_like(scenes.latent["samples"])
    noise = torch.stack([torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(SEED + first + i))
                         for i in range(len(latent))])
    made = comfy.sample.sample(model, noise, steps, cfg, "euler", scenes.scheduler, scenes.target, scenes.null, latent,
                               disable_pbar=True, seed=0)
    return vae.decode(made)


def references(scenes, cfg: float, steps: int, first: int) -> dict[str, Tensor]:
    """{name: pictures [B,H,W,3]} of some cases, whose first has this number."""
    _, _, vae = scenes.parts

    def through(make):
        drawn = [make(edit, first + i) for i, edit in enumerate(scenes.edits)]
        return vae.decode(vae.encode(torch.from_numpy(np.stack(drawn))))

    return {"fresh noise": fresh_noise(scenes, cfg, steps, first), "identifiable": through(identifiable),
            "another picture": through(lambda edit, number: render(another_scene(edit, number)))}
