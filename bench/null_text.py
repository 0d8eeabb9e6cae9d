"""Null-text optimisation: reconstruction against cost, for ours and the published loop on the same model in one run.

    python tools/dev.py bench null_text [--count 8] [--steps 50] [--cfg 7.5]

Held-out scenes of the miniature are inverted once. Each row is one run of all scenes together, then a plain replay at
the CFG with the learned embeddings. A run ends a step when its last scene is close enough.
Cost: network row-passes per step and picture, 1 for a forward and 2 for a backward, without the inversion's own.
Peer: the authors' loop. It starts from the null prompt's embedding. Adam's learning rate falls from 1e-2 to half of it.
    It takes at most 10 inner steps, stops early under a loss of 1e-5 + 2e-5·i, and ends with a guided step of two rows.
PSNR: to the picture's own round trip through the autoencoder, as a mean over pictures.

Writes bench/results/null_text.json and prints the table.
"""
import argparse
import dataclasses
import json
import platform
import time
from functools import partial
from pathlib import Path

import comfy.samplers
import comfyui_version
import torch

from ..editing import replay as replaying
from ..editing.inverting import invert, learn
from ..inversion.method import Found
from ..inversion.null_text import METHOD
from ..inversion.trajectory import Theta
from ..metrics.pixels import psnr
from ..miniature.model import load_miniature
from ..miniature.scenes import held_out_edit
from ..nodes.prompt import PalimpsestPromptEdit

RESULTS = Path(__file__).parent / "results" / "null_text.json"
KINDS = ("colour", "object", "material", "background")


def published(cond, uncond, path, sigmas, embedding, cfg, inner):
    """The authors' loop. Returns one embedding per step."""
    x, rows, learned, steps = path[0], path[0].new_ones(len(path[0])), [], len(sigmas) - 1
    embedding = embedding.expand(len(x), -1, -1).clone()
    for i in range(steps):
        sigma, following, share = sigmas[i], sigmas[i + 1], 50 * i / steps
        leaf = embedding.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], lr=1e-2 * (1 - share / 100))
        with torch.no_grad():
            guide = cond(x, sigma * rows)

        def step():
            null = uncond(x, sigma * rows, leaf)
            return x + (following - sigma) / sigma * (x - null - cfg * (guide - null))

        for _ in range(inner):
            losses = ((step() - path[i + 1]) / (1 + following ** 2).sqrt()).square().flatten(1).mean(1)
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
            if losses.max() < 1e-5 + 2e-5 * share:
                break
        embedding = leaf.detach()
        learned.append(embedding.cpu())
        with torch.no_grad():
            cond(x, sigma * rows)  # their loop predicts both rows again for the step
            x = step()
    return learned


def authors(model, inversion, null, cfg, inner):
    """The published loop as an INVERSION."""
    def loop(network, path, sigmas, **_):
        learned = published(partial(network.x0, "source"), partial(network.x0, "null"), path, sigmas,
                            network.embedding("null"), cfg, inner)
        return Found(theta={"uncond": Theta(torch.stack(learned), "step", "prediction")})
    return learn(dataclasses.replace(METHOD, learn=loop), model, inversion, cfg, null, start="negative")


def replay(model, inversion, source, null, cfg):
    """Plain sampling of the source prompt at a CFG, in model space."""
    m, sampler, sigmas, latent = replaying.replay(model, inversion)
    guider = comfy.samplers.CFGGuider(m)
    guider.set_conds(source, null)
    guider.set_cfg(cfg)
    x = latent["samples"]
    return guider.sample(torch.zeros_like(x), x, sampler, sigmas, disable_pbar=True, seed=0)


def measure(args) -> dict:
    model, clip, vae = load_miniature()
    edits = [held_out_edit(i, KINDS[i % len(KINDS)]) for i in range(args.count)]
    pictures = torch.stack([torch.from_numpy(e.source_image) for e in edits])
    texts = "\n".join(e.source_text for e in edits)
    source = PalimpsestPromptEdit.execute(clip, texts, texts, "auto").result[0]
    null = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    latent = {"samples": vae.encode(pictures)}
    ceiling = vae.decode(latent["samples"])
    inversion = invert("DDIM", model, source, latent, args.steps).inversion
    table = {}

    def row(name, learned, cfg):
        cost = learned.provenance["evaluations"] - inversion.provenance["evaluations"]
        found = vae.decode(replay(model, learned, source, null, cfg))
        table[name] = {"cost": cost / args.steps / args.count, "psnr": float(psnr(found, ceiling).mean()),
                       "seconds": learned.provenance["seconds"] - inversion.provenance["seconds"]}
        print(f"| {name} | {table[name]['cost']:.1f} | {table[name]['psnr']:.1f} dB | {table[name]['seconds']:.0f} |",
              flush=True)

    row("CFG 1, nothing learned", inversion, 1.0)
    row(f"CFG {args.cfg:g}, nothing learned", inversion, args.cfg)
    for inner in (1, 2, 5, 10):
        row(f"published loop, at most {inner} inner steps", authors(model, inversion, null, args.cfg, inner), args.cfg)
    for start, negative in (("negative", null), ("source prompt", None)):
        for iterations in (1, 2, 5, 10):
            learned = learn(METHOD, model, inversion, args.cfg, negative, iterations=iterations, start=start)
            row(f"Null-Text Optimize from the {start}, at most {iterations}", learned, args.cfg)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=7.5)
    args = parser.parse_args()
    print("| | row-passes a step | to the ceiling | seconds |\n|---|---|---|---|")
    began = time.time()
    with torch.inference_mode():
        table = measure(args)
    about = {"settings": vars(args), "machine": f"{platform.processor() or platform.machine()}, "
                                                f"{torch.get_num_threads()} threads",
             "versions": {"torch": torch.__version__, "comfyui": comfyui_version.__version__},
             "seconds": time.time() - began}
    RESULTS.write_text(json.dumps({**about, "measured": table}, indent=1) + "\n", encoding="utf-8")
