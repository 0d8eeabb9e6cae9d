"""Where words are: Attention Mask against the true object, on held-out scenes.

    python tools/dev.py bench masks [--count 6] [--steps 20] [--seed 0] [--words all shape] [--model flow]

The first scenes of each kind of edit are inverted (DDIM), and their words are mapped at Attention Store's default. The
words of the edited object become a mask of the picture's size: at each threshold (0: automatic), with plain maps, which
is Prompt-to-Prompt's LocalBlend, and with refined maps. With `--model flow` the miniature flow model maps them, and
Concept Attention maps the object's shape, all other shapes of the scene and "background", over all double blocks.
IoU is with the pixels that the object covers. "wide" is the share of scenes whose mask covers over two thirds of the
picture. Writes bench/results/masks.json and prints the table.
"""
import argparse
import json
from pathlib import Path

import torch

from ..editing.inverting import invert
from ..editing.masks import WIDE
from ..miniature.model import load_flow_miniature, load_miniature
from ..miniature.scenes import EDIT_KINDS, covered, held_out_edit
from ..nodes.attention.concept_attention import PalimpsestConceptAttention
from ..nodes.attention.store import PalimpsestAttentionMask, PalimpsestAttentionStore
from ..nodes.prompt import PalimpsestPromptEdit

THRESHOLDS = 0.0, 0.3, 0.5, 0.7
RESULTS = Path(__file__).parent / "results" / "masks.json"


def iou(a, b):
    """[B] of masks [B, h, w]."""
    a, b = a > 0.5, b > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def named(edit, which="all"):
    """(names of the words of the edited object, each by its own occurrence; the object)."""
    objects = edit.source.objs
    one = next((o for o in objects if o not in edit.target.objs), objects[0])
    text, phrase = edit.source_text, one.phrase()
    before = text.split(phrase)[0] if one == objects[0] else text.rsplit(phrase, 1)[0]
    words, seen, names = phrase.split()[1:], before.split() + ["a"], []
    for word in words if which == "all" else words[-1:]:
        names.append(f"{word}#{(seen + words[:words.index(word)]).count(word) + 1}")
    return ", ".join(names), one


def masks(edits, parts, steps, which, flow):
    """(true masks [B, H, W], {(maps, threshold): masks})."""
    model, clip, vae = parts
    pictures = torch.stack([torch.from_numpy(e.source_image) for e in edits])
    found, true = {}, []
    for edit, picture in zip(edits, pictures):
        words, one = named(edit, which)
        true.append(torch.from_numpy(covered(one)))
        source, _, aligned = PalimpsestPromptEdit.execute(clip, edit.source_text, edit.target_text, "auto").result
        inversion = invert("DDIM", model, source, {"samples": vae.encode(picture[None])}, steps).inversion
        attention = PalimpsestAttentionStore.execute(model, inversion, aligned, 0.25).result[0]
        maps = {"as they are": (attention, words, False), "refined": (attention, words, True)}
        if flow:
            concepts = dict.fromkeys([one.shape, *(o.shape for o in edit.source.objs), "background"])
            maps["of concepts"] = (PalimpsestConceptAttention.execute(
                model, clip, inversion, ", ".join(concepts), "d", False).result[0], one.shape, True)
        for name, (seen, asked, refine) in maps.items():
            for threshold in THRESHOLDS:
                mask = PalimpsestAttentionMask.execute(seen, asked, threshold, 0, 0.0, picture[None], refine).result[0]
                found.setdefault((name, threshold), []).append(mask)
    return torch.stack(true), {key: torch.cat(made) for key, made in found.items()}


def table(measured) -> str:
    kinds = [*next(iter(measured.values()))]
    lines = ["| maps | threshold | " + " | ".join(kinds) + " |", "|---" * (2 + len(kinds)) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(f"{v:.2f}" for v in numbers.values()) + " |"
                              for name, numbers in measured.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6, help="scenes of each kind of edit")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="number of the first held-out edit")
    parser.add_argument("--words", nargs="+", choices=("all", "shape"), default=["all", "shape"], help="of the object")
    parser.add_argument("--model", choices=("flow",), help="the miniature flow model, in place of the U-Net")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measured = {}
    with torch.inference_mode():
        flow = args.model == "flow"
        parts = load_flow_miniature() if flow else load_miniature()
        for which in args.words:
            rows = {}
            for kind in EDIT_KINDS:
                edits = [held_out_edit(args.seed + i, kind) for i in range(args.count)]
                true, found = masks(edits, parts, args.steps, which, flow)
                for key, made in found.items():
                    rows.setdefault(key, {})[kind] = iou(made, true), made.mean((1, 2)) > WIDE
            for (maps, threshold), kinds in rows.items():
                name = f"{maps}{'' if which == 'all' else ', the shape alone'} | {threshold:g}"
                every, wide = (torch.cat([numbers[i].float() for numbers in kinds.values()]) for i in (0, 1))
                measured[name] = {**{kind: numbers[0].mean().item() for kind, numbers in kinds.items()},
                                  "all": every.mean().item(), "least": every.min().item(), "wide": wide.mean().item()}
    settings = {n: v for n, v in vars(args).items() if n != "out"}
    out = args.out or (RESULTS.with_name("masks-flow.json") if args.model else RESULTS)
    out.write_text(json.dumps({"settings": settings, "measured": measured}, indent=1) + "\n", encoding="utf-8")
    print(table(measured))
