"""What a step of learning costs: beside diffusers' DreamBooth step on equal weights, and with blocks computed twice.

    python tools/dev.py bench learning [--steps 3] [--batch 4]

All weights of the miniature learn from the same rows, in turn: here, here with the network's blocks computed twice, and
as in diffusers' train_dreambooth.py (its U-Net, MSE of ε, clipping, AdamW). Seconds are the median step's, of one core;
memory is the most that autograd keeps at a time. Writes bench/results/learning.json.
"""
import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..concept.dreambooth import RARE, AllWeights
from ..editing.concepts import ConceptImages, Example
from ..editing.learner import Learner
from ..editing.learning import learn_concept
from ..host.memory import Kept, counting
from ..miniature.model import load_miniature
from . import twin

RESULTS = Path(__file__).parent / "results" / "learning.json"
HERE = {"here": False, "blocks twice": True}  # whether blocks are computed twice
RATE, TEXT = 1e-4, "a photo of a * star on a grass background"


def ours(model, clip, given, batch, steps, recompute) -> list:
    """Seconds of each step."""
    spent, step = [], Learner.step

    def timed(self):
        began = time.process_time()
        out = step(self)
        spent.append(time.process_time() - began)
        return out

    Learner.step = timed
    try:
        learn_concept(model, clip, given, [AllWeights(RATE)], steps=steps, batch=batch, recompute=recompute)
    finally:
        Learner.step = step
    return spent


def kept_here(model, clip, given, batch, recompute) -> int:
    """Bytes that autograd keeps of a step. Counting takes time, so it has a step of its own."""
    with counting(model.model.diffusion_model, clip.cond_stage_model) as kept:
        ours(model, clip, given, batch, 1, recompute)
    return kept.most


class Theirs:
    """diffusers' step."""

    def __init__(self, model, clip, given, batch):
        self.unet, self.batch = twin.unet(model, 16).train(), batch
        self.latents = torch.stack([model.model.process_latent_in(e.latent.clone()) for e in given.examples])
        text = clip.encode_from_tokens(clip.tokenize(TEXT.replace("*", RARE)))
        self.text = text.clone().expand(batch, -1, -1)
        self.optimiser = torch.optim.AdamW(self.unet.parameters(), RATE)
        self.levels = torch.cumprod(1 - torch.linspace(0.00085 ** .5, 0.012 ** .5, 1000) ** 2, 0)

    def __call__(self):
        self.optimiser.zero_grad(set_to_none=True)
        clean = self.latents[torch.randint(len(self.latents), (self.batch,))]
        level, noise = torch.randint(1000, (self.batch,)), torch.randn_like(clean)
        share = self.levels[level].view(-1, 1, 1, 1)
        predicted = self.unet(share.sqrt() * clean + (1 - share).sqrt() * noise, level, self.text).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()

    def kept(self) -> int:
        """Bytes that autograd keeps of a step."""
        count = Kept(self.unet)

        class Held:
            def __init__(self, tensor):
                self.tensor = tensor

        def pack(tensor):
            held = Held(tensor.detach())
            count(held, tensor)
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            self()
        return count.most


def timed(step: Callable, steps: int) -> list:
    spent = []
    for _ in range(steps):
        began = time.process_time()
        step()
        spent.append(time.process_time() - began)
    return spent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list] = {name: [] for name in (*HERE, "diffusers")}
    with torch.inference_mode():
        model, clip, _ = load_miniature()
        given = ConceptImages(tuple(Example(z, TEXT) for z in torch.randn(4, 4, 16, 16)), RARE)
        with torch.inference_mode(False):
            theirs = Theirs(model, clip, given, args.batch)
            kept = {"diffusers": theirs.kept()}
        for name, recompute in HERE.items():
            kept[name] = kept_here(model, clip, given, args.batch, recompute)
        for _ in range(10):  # in turn, so that what else the machine does falls on all
            for name, recompute in HERE.items():
                seconds[name] += ours(model, clip, given, args.batch, args.steps + 1, recompute)[1:]
            with torch.inference_mode(False):
                seconds["diffusers"] += timed(theirs, args.steps)
    rows = {name: {"seconds": statistics.median(found), "kept": kept[name]} for name, found in seconds.items()}
    for name, other in (("here", "diffusers"), ("blocks twice", "here")):
        ratios = {key: rows[name][key] / rows[other][key] for key in ("seconds", "kept")}
        print(f"{name} / {other}: time {ratios['seconds']:.2f}, memory {ratios['kept']:.2f}")
    result = {"machine": f"{platform.processor() or platform.machine()}, 1 thread", "batch": args.batch, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
