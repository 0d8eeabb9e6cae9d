"""How well the miniature follows its captions.

    python tools/dev.py bench miniature [--captions 200] [--cfg 2 3 5] [--model flow]

Writes bench/results/miniature.json, or miniature-flow.json of the flow model: text-to-image accuracy per attribute by
the scene reader (one row per CFG), the autoencoder's PSNR and the reader's accuracy on held-out scenes, and the seconds
for one picture.
"""
from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch

from ..miniature import scenes
from ..miniature.model import load_flow_miniature, load_miniature
from ..miniature.picture import sample
from ..miniature.reader import read

RESULTS = Path(__file__).parent / "results"
MODELS = {"sd": (load_miniature, "ddim on ddim_uniform", ""), "flow": (load_flow_miniature, "euler on simple", "-flow")}


def accuracy(pictures: torch.Tensor, drawn: list[scenes.Scene]) -> dict[str, float]:
    """The share of right names by attribute.

    The two objects of a scene count as two readings. "shape, colour and ground" needs all of them in one picture.
    """
    right = defaultdict(list)
    for scene, seen in zip(drawn, read(pictures)):
        asked = scenes.visible(scene)
        for name, value in asked.items():
            right[name.removesuffix("#2")].append(seen.get(name) == value)
        right["shape, colour and ground"].append(
            all(seen.get(k) == v for k, v in asked.items() if k.split("#")[0] in ("shape", "colour", "ground")))
    return {k: sum(v) / len(v) for k, v in right.items()}


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR in dB, per picture (B, H, W, C) in 0..1."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def in_batches(captions: list[str], cfg: float, loaded, size: int = 25) -> torch.Tensor:
    starts = range(0, len(captions), size)
    return torch.cat([sample(*loaded, captions[i:i + size], cfg=cfg, seed=i) for i in starts])


def measure(captions: int, scales: list[float], load, sampler: str) -> dict:
    drawn = [scenes.held_out_scene(i) for i in range(captions)]
    truth = torch.stack([torch.from_numpy(scenes.render(s)) for s in drawn])
    loaded = load()
    smeared = loaded[2].decode(loaded[2].encode(truth))
    report = {"captions": captions, "steps": 50, "sampler": sampler,
              "autoencoder": {"mean PSNR, dB": psnr(smeared, truth).mean().item(),
                              "PSNR of the mean error, dB": -10 * (smeared - truth).square().mean().log10().item(),
                              "lowest PSNR, dB": psnr(smeared, truth).min().item()},
              "reader on renders": accuracy(truth, drawn), "reader on round trips": accuracy(smeared, drawn)}
    began = time.monotonic()
    sample(*loaded, [drawn[0].caption()])
    report["seconds for one picture, 50 steps with CFG"] = time.monotonic() - began
    texts = [s.caption() for s in drawn]
    report["text to image"] = {f"CFG {c:g}": accuracy(in_batches(texts, c, loaded), drawn) for c in scales}
    return report


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="bench miniature", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--cfg", type=float, nargs="+", default=[2, 3, 5, 7.5])
    parser.add_argument("--model", choices=MODELS, default="sd")
    args = parser.parse_args(argv)
    load, sampler, kind = MODELS[args.model]
    report = measure(args.captions, args.cfg, load, sampler)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(report, indent=1)
    (RESULTS / f"miniature{kind}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
