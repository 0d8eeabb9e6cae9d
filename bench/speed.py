"""Speed and memory of an edit: against the published pipelines, against plain sampling, and as a run grows.

    python tools/dev.py bench speed [--only peers flow learned nodes growth] [--rounds 5] [--steps 10]
        [--community FOLDER]

Peers: diffusers' pipelines with equal weights, steps and device, from the same noise. Their weights require no
    gradient. The model is SD1.5's U-Net with random weights and --channels at its top. FOLDER is diffusers'
    examples/community, which its package does not contain. Without it Prompt-to-Prompt and RF-Inversion are left out,
    and FlowEdit, whose authors' FlowEdit_utils.py it should hold too. "difference" is the relative distance of the two
    results, where they should be equal.
Flow: the same of a Flux with random weights, a sixth of the width and a ninth of the blocks.
Learned: null-text on the miniature, which is trained. Without FOLDER its peer is the published loop on this host. Each
    side learns its own embeddings, so the last column shows how far from the picture they lead, ours first.
Nodes: every editor and every inversion at its defaults, against plain sampling with CFG and as many steps, on the
    miniature.
Growth: some of them over steps, rows of a batch, sides of the latent and numbers of concepts, against plain sampling of
    the same.

Each round times every run once, in turn. A ratio is within one round, and is reported as median and range. The ratio of
processor times is reported too. Memory is the largest sum of tensors that are alive at once in a run, without the
weights. Writes bench/results/speed.json and keeps the parts in it that were not measured. Prints the rows of
docs/benchmarks.md.
"""
import argparse
import json
from functools import partial
from pathlib import Path

import comfy.utils
import diffusers
import torch

from ..miniature.model import load_miniature
from ..miniature.scenes import held_out_edit
from ..nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from ..showcase.guidance.sega import concepts
from .cost import EDITORS, Bench, about, clocked, peak, random_model, ratios
from .flow_peers import FLOW, FlowPeers
from .inversions import METHODS
from .peers import NARROW, TRAINED, Peers

RESULTS = Path(__file__).parent / "results" / "speed.json"
COMMUNITY = "Prompt-to-Prompt", "RF-Inversion", "FlowEdit"  # rows whose peers no package has


def compare(b, make, rounds) -> dict:
    ours, theirs, *reached = make(b)
    found = {}

    def kept(name, run, inference):
        with torch.inference_mode(inference):
            found[name] = run()

    runs = {"ours": partial(kept, "ours", ours, True), "theirs": partial(kept, "theirs", theirs, False)}
    numbers = beside(runs, "theirs", rounds)["ours"]
    if reached:
        return numbers | {f"{name}, from the picture": reached[0](found[name]) for name in runs if reached[0]}
    return numbers | {"difference": float((found["ours"].cpu() - found["theirs"].cpu()).norm()
                                          / found["theirs"].norm())}


def beside(runs, base, rounds) -> dict:
    """{name: numbers over those of the run named `base`} of the other runs, {name: function}."""
    memory, seconds = {name: peak(run) for name, run in runs.items()}, clocked(runs, rounds)
    return {name: {**ratios(seconds[name], seconds[base]), "memory": memory[name] / memory[base],
                   "memory, MB": memory[name] / 2 ** 20} for name in runs if name != base}


def peers(args) -> dict:
    model = random_model("SD1.5", model_channels=args.channels)
    return measured(Peers(model, load_miniature()[1], args.size, args.steps, args.community), NARROW, args)


def flow(args) -> dict:
    model = random_model("Flux", hidden_size=512, num_heads=4, depth=2, depth_single_blocks=4)
    return measured(FlowPeers(model, load_miniature()[1], args.size, args.steps, args.community), FLOW, args)


def learned(args) -> dict:
    model, clip, vae = load_miniature()
    edit = held_out_edit(0, "colour")
    picture = vae.encode(torch.from_numpy(edit.source_image)[None])
    return measured(Peers(model, clip, 16, args.steps, args.community, texts=(edit.source_text, edit.target_text),
                          picture=picture),
                    TRAINED, args)


def measured(b, rows, args) -> dict:
    found = {}
    for name, row in rows.items():
        if args.community or not any(one in name for one in COMMUNITY):
            found[name] = compare(b, row, args.rounds)
            print(peer_row(name, found[name]), flush=True)
    return found


PLAIN = "plain"


def nodes(args) -> dict:
    model, clip, _ = load_miniature()
    b = Bench(model, clip, 16, args.steps)
    runs = {PLAIN: partial(b.run, model)} | {name: partial(b.run, row.edit(b))
                                             for name, row in EDITORS.items() if row.rows == 1}
    runs["Delta Denoise, as many iterations"] = partial(b.other, PalimpsestDeltaDenoise, iterations=args.steps)
    runs |= {f"{name}, the inversion": partial(b.inverted, row.method.name)
             for name, row in METHODS.items() if not row.source}
    return beside(runs, PLAIN, args.rounds)


AXES = {"steps": (10, 20, 40), "rows": (1, 2, 4), "side": (16, 32, 48), "concepts": (1, 2, 3)}


def growth(args) -> dict:
    miniature, clip, _ = load_miniature()
    found = {}
    for axis, values in AXES.items():
        for value in values:
            at = {name: first for name, (first, *_) in AXES.items()} | {axis: value}
            b = Bench(miniature, clip, at["side"], at["steps"])
            pictures = {"samples": b.picture["samples"].repeat(at["rows"], 1, 1, 1)}
            edited = {PLAIN: b.model, "SEGA": concepts(at["concepts"])(b), "Attention Inject": b.injected()}
            runs = {name: partial(b.run, model, at["rows"]) for name, model in edited.items()}
            runs["DDIM Invert"] = partial(b.inverted, "DDIM", latent=pictures)
            found.setdefault(axis, {})[value] = beside(runs, PLAIN, args.rounds)
    return found


def line(*cells) -> str:
    return f"| {' | '.join(cells)} |"


def spread(r) -> list:
    return [f"{r['time']:.2f}", "{:.2f} to {:.2f}".format(*r["time, range"]), f"{r['processor time']:.2f}",
            f"{r['memory']:.2f}"]


def peer_row(name, r) -> str:
    apart = [f"{r[key]:.0e}" for key in r if key == "difference" or key.endswith("from the picture")]
    return line(name, *spread(r), ", ".join(apart))


def table(results) -> str:
    """The rows of docs/benchmarks.md."""
    lines = []
    for part in ("peers", "flow", "learned"):
        if part in results:
            lines += ["", line("ours over theirs", "time", "range", "processor time", "memory", "difference"),
                      line(*["---"] * 6)]
            lines += [peer_row(*row) for row in results[part]["measured"].items()]
    if "nodes" in results:
        lines += ["", line("over plain sampling", "time", "range", "processor time", "memory"), line(*["---"] * 5)]
        lines += [line(name, *spread(r)) for name, r in results["nodes"]["measured"].items()]
    for axis, found in results.get("growth", {}).get("measured", {}).items():
        lines += ["", line(axis, *map(str, found)), line(*["---"] * (1 + len(found)))]
        lines += [line(name, *(f"{r[name]['time']:.2f}" for r in found.values()))
                  for name in next(iter(found.values()))]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of peers and nodes")
    parser.add_argument("--channels", type=int, default=64, help="at the top of SD1.5's U-Net with random weights")
    parser.add_argument("--size", type=int, default=32, help="side of its latent, a multiple of 8")
    parser.add_argument("--community", type=Path, help="diffusers' examples/community")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.community is None:
        print(f"No --community: {', '.join(COMMUNITY)} are left out, and null-text's peer is the published loop on "
              "this host.")
    comfy.utils.set_progress_bar_enabled(False)
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    args.out.parent.mkdir(exist_ok=True)
    with torch.inference_mode():
        for part in args.only:
            settings = {k: getattr(args, k) for k in ("rounds", "steps", "channels", "size")}
            results[part] = {
                "settings": {**settings, "community": bool(args.community)}, **about(),
                "diffusers": diffusers.__version__,
                "measured": PARTS[part](args)}
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(args.out.read_text(encoding="utf-8"))))


PARTS = {"peers": peers, "flow": flow, "learned": learned, "nodes": nodes, "growth": growth}
