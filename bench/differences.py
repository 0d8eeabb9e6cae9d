"""Masks from differences of predictions (DiffEdit Mask) against the true edit, by kind of edit.

    python tools/dev.py bench differences [--split public] [--cases 30]

DiffEdit's difference map of each case becomes a mask by the paper's rule and by "auto", at the node's defaults. Masks
are compared on the latent's cells, with those that hold a pixel that the edit changes.
IoU: intersection over union. Recall: the share of the edit that the mask lets change. Spread: the least and the largest
of the maps' 10 % quantile over their 90 % quantile.
Use the public split to choose settings and the held-out split for claims. Writes bench/results/differences.json and
prints the table.
"""
import argparse
import json
from pathlib import Path

import torch

from ..blending.diffedit import RULES, difference_map, mask, spread
from ..editing.inverting import source_latent
from ..editing.masks import latent_mask
from ..miniature.model import load_miniature
from ..miniature.scenes import EDIT_KINDS
from .inversions import Scenes
from .splits import SPLITS

RESULTS = Path(__file__).parent / "results" / "differences.json"


def numbers(difference, true) -> dict:
    """{number: its mean} of maps [B, h, w] of true masks [B, h, w]."""
    found = {"least spread": spread(difference).min().item(), "largest spread": spread(difference).max().item()}
    for rule in RULES:
        made = mask(difference, rule=rule)
        both = (made * true).sum((1, 2))
        found[f"{rule}: IoU"] = (both / torch.maximum(made, true).sum((1, 2))).mean().item()
        found[f"{rule}: recall"] = (both / true.sum((1, 2))).mean().item()
    return found


def measure(parts, edits, batch=10) -> dict:
    maps, true = [], []
    for start in range(0, len(edits), batch):
        scenes = Scenes(parts, edits[start:start + batch])
        maps.append(difference_map(parts[0], scenes.source, scenes.target, source_latent(parts[0], scenes.latent)))
        true.append(latent_mask(scenes.masks, maps[-1].shape[1:]))
    return numbers(torch.cat(maps), torch.cat(true))


def table(measured) -> str:
    names = [*next(iter(measured.values()))]
    lines = ["| | " + " | ".join(measured) + " |", "|---" * (1 + len(measured)) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(f"{row[name]:.2f}" for row in measured.values()) + " |"
                              for name in names])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="public")
    parser.add_argument("--cases", type=int, default=30, help="of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    split = SPLITS[args.split]
    with torch.inference_mode():
        parts = load_miniature()
        measured = {kind: measure(parts, split.edits(kind, range(split.first, split.first + args.cases)))
                    for kind in EDIT_KINDS}
    settings = {n: v for n, v in vars(args).items() if n != "out"}
    args.out.write_text(json.dumps({"settings": settings, "measured": measured}, indent=1) + "\n", encoding="utf-8")
    print(table(measured))
