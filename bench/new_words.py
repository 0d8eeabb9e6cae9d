"""A new word whose meaning is known: does it name the colour of the pictures that it was learned from, and no more?

    python tools/dev.py bench new_words [--steps 60] [--only COLOUR ...]

Textual Inversion learns one vector from five pictures of things of one colour, beginning as the word of the nearest
other colour. Nine colours have a word of their own, three the miniature has never seen. Then eight pictures of shapes
and grounds that were not learned are sampled, with the word where a colour stands.
colour: the share of pictures whose colour reads as the known one.
shape, ground: as their captions say.
error: the root of the mean squared error of RGB in 0..1, inside the exact object where it fits the picture best, its
    pattern, shading and the autoencoder's error with it.

Writes bench/results/new_words.json.
"""
import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from ..concept.textual_inversion import TextualInversion
from ..editing.concepts import SLOT, ConceptImages, Example
from ..editing.learning import applied, learn_concept
from ..host.concept_files import vectors_of
from ..miniature import scenes
from ..miniature.reader import read
from ..miniature.subjects import Subject, match
from .concepts import BATCH, WORD, Lab

RESULTS = Path(__file__).parent / "results" / "new_words.json"
NEW = {"orange": (.95, .55, .10), "brown": (.45, .28, .14), "grey": (.50, .50, .50)}
COLOURS = {**scenes.COLOURS, **NEW}
LEARNED = tuple(zip(("star", "square", "heart", "cross", "circle"), ("wall", "grass", "night", "sky", "wall")))
ASKED = tuple(zip(("triangle", "moon", "star", "square", "heart", "circle", "cross", "triangle"),
                  ("sky", "brick", "sand", "brick", "grass", "night", "wall", "night")))
RATE, ROWS = 5e-2, 2 * BATCH
NUMBERS = "colour", "shape", "ground", "error"


def thing(shape, colour) -> scenes.Obj:
    return scenes.Obj(shape, colour, "plain", False, .5, .5, .27, 0., 0.)


def fits(pairs, colour) -> list:
    """Those of some (shape, ground) on which a colour is seen."""
    return [(shape, ground) for shape, ground in pairs if (colour, ground) not in scenes.CLASHES]


def given(lab, colour) -> ConceptImages:
    """What the word is learned from."""
    pairs = fits(LEARNED, colour)
    shows = [scenes.Scene((replace(thing(shape, colour), x=.45 + .02 * i, r=.22 + .02 * i),), ground, "photo", i)
             for i, (shape, ground) in enumerate(pairs)]
    latents = lab.vae.encode(torch.stack([torch.from_numpy(scenes.render(s)) for s in shows]))
    return ConceptImages(tuple(Example(z, f"a photo of a {SLOT} {shape} on a {ground} background")
                               for z, (shape, ground) in zip(latents, pairs)), "")


def nearest(colour, clip) -> str:
    """Another colour whose word is one token, the most like this one."""
    others = [name for name in scenes.COLOURS.keys() - NEW.keys() - {colour}
              if len(vectors_of(clip, name)["clip_l"]) == 1]
    return min(sorted(others), key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], COLOURS[colour])))


def measure(lab, colour, steps) -> dict:
    word = TextualInversion(WORD, nearest(colour, lab.clip), 1, RATE)
    learned = learn_concept(lab.model, lab.clip, given(lab, colour), [word], None, steps, ROWS, 0)
    model, clip = applied(lab.model, lab.clip, learned)
    pairs = fits(ASKED, colour)
    shown = lab.sample(model, clip, [f"a photo of a embedding:{WORD} {shape} on a {ground} background"
                                     for shape, ground in pairs], 3)
    seen = read(shown)
    found = {name: sum(one[name] == wanted for one, wanted in zip(seen, values)) / len(pairs) for name, values in (
        ("colour", [colour] * len(pairs)), ("shape", [s for s, _ in pairs]), ("ground", [g for _, g in pairs]))}
    decibels = torch.cat([match(one[None], Subject(thing(shape, colour))) for one, (shape, _) in zip(shown, pairs)])
    return {**found, "error": float((10 ** (-decibels / 10)).mean() ** .5)}


def table(measured) -> str:
    lines = ["| | colour | shape | ground | RGB error |", "|---|---|---|---|---|"]
    for name, row in measured.items():
        colour = "" if name in NEW or name == "unseen" else f"{row['colour']:.0%}"
        lines.append(f"| {name} | {colour} | {row['shape']:.0%} | {row['ground']:.0%} | {row['error']:.3f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=COLOURS, default=list(COLOURS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes.COLOURS.update(NEW)  # they are painted, and no word says them
    measured = {}
    with torch.inference_mode():
        lab = Lab()
        for colour in args.only:
            measured[colour] = measure(lab, colour, args.steps)
            print(colour, measured[colour], flush=True)
    for name, of in ("known", scenes.COLOURS.keys() - NEW.keys()), ("unseen", NEW.keys()):
        rows = [measured[colour] for colour in measured if colour in of]
        if rows:
            measured[name] = {n: sum(row[n] for row in rows) / len(rows) for n in NUMBERS}
    print(table(measured))
    RESULTS.write_text(json.dumps({"settings": {"steps": args.steps, "rate": RATE, "rows": ROWS}, "machine":
                                   f"{platform.processor() or platform.machine()}, 1 thread", "measured": measured},
                                  indent=1) + "\n", encoding="utf-8")
