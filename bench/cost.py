"""The cost of an edit: time and peak memory of edited runs over plain CFG sampling, on the same attention backend.

    python tools/dev.py bench cost [--only miniature sd15-64 sdxl-64 sd15-128 sdxl-128 flux-64 "flux-64, no CFG"
        "flux-128, no CFG"] [--rounds 5] [--steps 20] [--large-steps 2] [--dtype bfloat16] [--out FILE]
        [--host-options="--lowvram"]

Models: the miniature on 16 × 16 latents, and random U-Nets of SD1.5's and SDXL's shape on 64 × 64 and 128 × 128. SDXL's
    runs have no editor that follows a gradient, and those on 128 × 128 have only a few editors. flux-64 is a Flux of a
    third of the width and a sixth of the blocks: 1024 tokens of a picture and the prompt's.
Time: each round times every run once, plain and edited in turn. A ratio is edited / plain within one round. Its median
    over the rounds is reported with its range. The ratio of processor times is reported too, because other jobs of the
    machine disturb it less.
Promised time: the reference costs the forwards of r rows on a share f of the steps. An edit should take at most
    1 + f·r/2B + 0.1 times plain sampling of B rows, 1 + f·r/B + 0.1 without CFG. An edit that follows a gradient has
    no such limit.
Memory: the weights plus the largest sum of tensors that are alive at once in a run. It should be at most 1.3 times
    plain's, on Flux 1.15. The tensors alone are reported too.

Writes bench/results/cost.json and keeps the models in it that were not measured. Prints the rows of docs/benchmarks.md.
"""
import argparse
import json
import math
import platform
import time
from functools import partial
from pathlib import Path
from statistics import median

import comfy.ldm.modules.attention as attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import comfyui_version
import torch
from comfy.patcher_extension import WrappersMP

from .. import showcase
from ..attention.alignment import PromptEdit, align
from ..editing.inverting import invert, learn
from ..editing.replay import replay
from ..host.tokens import encode, tokenize_rows
from ..inversion.method import method_named
from ..miniature.model import load_miniature
from ..miniature.networks import CLIP
from ..nodes.attention.p2p import PalimpsestAttentionInject
from ..nodes.attention.store import PalimpsestAttentionStore
from ..showcase.rows import inputs_of, output
from .fits import SHAPES

RESULTS = Path(__file__).parent / "results" / "cost.json"
SOURCE, TARGET = "a photo of a red star on green grass", "a photo of a blue star on green grass"
CONCEPT = "a blue star"
CFG, MARGIN = 7.5, 0.1
MEMORY = {"Flux": 1.15}  # on others 1.3
KINDS = {"SD1.5": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
         "SDXL": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
         "Flux": (comfy.supported_models.Flux, comfy.model_base.Flux)}
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": CLIP["hidden_size"],
        "hidden_size": 1024, "mlp_ratio": 4.0, "num_heads": 8, "depth": 3, "depth_single_blocks": 6,
        "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": []}
DEFAULTS = {"cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "cross_resolution": 1.0,
            "self_resolution": 0.5, "word_weights": "", "word_ends": ""}


class Bench:
    """A model, one picture's inversion and the two prompts. cfg: of its runs."""

    def __init__(self, model, clip, size, steps, texts=(SOURCE, TARGET), picture=None, cfg=CFG):
        self.model, self.clip, self.steps, self.texts, self.cfg = model, clip, steps, texts, cfg
        source, target, null = (tokenize_rows(clip, [text]) for text in (*texts, ""))
        self.source, self.target, self.null = (encode(clip, tokens) for tokens in (source, target, null))
        self.edit = PromptEdit((align(source[0], target[0]),))
        channels = model.get_model_object("latent_format").latent_channels
        noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
        self.whole = torch.ones(1, 8, 8)  # a mask of all
        self.mask = torch.zeros(1, 8, 8)
        self.mask[:, :4, :4] = 1
        self.picture = {"samples": noise if picture is None else picture}
        self.inversion = self.inverted("DDIM")
        _, *self.start = replay(model, self.inversion)
        self.maps = PalimpsestAttentionStore.execute(model, self.inversion, self.edit, 0.25).result[0]

    def injected(self, **changed):
        """Attention Inject at its defaults, except what is changed."""
        return PalimpsestAttentionInject.execute(self.model, self.inversion, self.edit, **DEFAULTS | changed).result[0]

    def inverted(self, name, **given):
        """The picture inverted by a method, at its defaults except what is given. One that learns follows DDIM's."""
        method = method_named(name)
        if method.invert or method.along:
            held = {"source": self.source, "latent": self.picture, "steps": self.steps}
            return invert(method, self.model, **held | given).inversion
        held = {} if "uncond" in method.theta else {"negative": self.null}
        return learn(method, self.model, self.inversion, **held | given)

    def other(self, node, **settings):
        """A node's output. Inputs without a default get what the bench holds."""
        given = {"model": self.model, "clip": self.clip, "source": self.source, "target": self.target,
                 "negative": self.null, "latent": self.picture, "steps": self.steps, "mask": self.mask,
                 "inversion": self.inversion, "reference": self.inversion}
        needed = {name for name, i in inputs_of(node).items() if not i.optional}
        return output(node, **{name: value for name, value in given.items() if name in needed} | settings)

    def run(self, model, batch=1, positive=None, cfg=None, start=None, callback=None):
        """One sampling, in model space. start: Replay's (SAMPLER, SIGMAS, LATENT) of another inversion."""
        sampler, sigmas, latent = start or self.start
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive or self.target, self.null)
        guider.set_cfg(self.cfg if cfg is None else cfg)
        x = latent["samples"].expand(batch, -1, -1, -1)
        return guider.sample(torch.zeros_like(x), x, sampler, sigmas, callback=callback, disable_pbar=True,
                             seed=0).cpu()

    def rows(self, model, batch) -> int:
        """Rows that the network sees in one sampling."""
        rows, counted = 0, model.clone()

        def count(executor, x, *args, **kwargs):
            nonlocal rows
            rows += len(x)
            return executor(x, *args, **kwargs)

        counted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
        self.run(counted, batch)
        return rows


EDITORS = {row.name: row for row in showcase.collected("costs")}
LARGE, JOINT = ({name: row for name, row in EDITORS.items() if getattr(row, of)} for of in ("large", "joint"))
MODELS = {  # name: (one of SHAPES or the miniature, the latent's side, what is measured, CFG)
    "miniature": (None, 16, EDITORS, CFG), "sd15-64": ("SD1.5", 64, EDITORS, CFG),
    "sdxl-64": ("SDXL", 64, {name: row for name, row in EDITORS.items() if not row.gradient and row.rows == 1}, CFG),
    "sd15-128": ("SD1.5", 128, LARGE, CFG), "sdxl-128": ("SDXL", 128, LARGE, CFG),
    "flux-64": ("Flux", 64, JOINT, CFG), "flux-64, no CFG": ("Flux", 64, JOINT, 1.0),
    "flux-128, no CFG": ("Flux", 128, {name: row for name, row in LARGE.items() if row.joint}, 1.0)}


def clocked(runs, rounds) -> dict:
    """{name: [(seconds by the clock, seconds of the processor) per round]} of runs {name: function}, in turn."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return seconds


def ratios(ours, theirs) -> dict:
    """Median and range of the rounds' ratios, from two lists of `clocked`."""
    found = {}
    for i, clock in enumerate(("time", "processor time")):
        each = [a[i] / b[i] for a, b in zip(ours, theirs)]
        found |= {clock: median(each), f"{clock}, range": [min(each), max(each)]}
    return {"seconds": median(s for s, _ in ours), **found}


def peak(run) -> int:
    """The most bytes of tensors that a run has alive at once, without those that were alive before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    alive = highest = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest


def weights(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.model.parameters())


def measure(b, editors, rounds) -> dict:
    """{name: numbers} of edited runs against plain runs of as many rows, for editors like those in EDITORS."""
    edits = {name: (row.edit(b), row.rows) for name, row in editors.items()}
    every = {unedited(batch): (b.model, batch) for batch in sorted({batch for _, batch in edits.values()})} | edits
    rows = {}
    memory = {name: peak(lambda: rows.update({name: b.rows(*run)})) for name, run in every.items()}  # warms up too
    seconds = clocked({name: partial(b.run, *run) for name, run in every.items()}, rounds)
    return {name: compare(name, b, batch, seconds, rows, memory) for name, (_, batch) in edits.items()}


def unedited(batch) -> str:
    return f"plain, {batch} rows"


def compare(name, b, batch, seconds, rows, memory) -> dict:
    plain, held = unedited(batch), weights(b.model)
    share = (rows[name] - rows[plain]) / b.steps
    promised = None if EDITORS[name].gradient else 1 + share / (rows[plain] / b.steps) + MARGIN
    return {"rows": batch, "share of steps read": share, "row passes": rows[name] / rows[plain],
            "seconds, plain": median(s for s, _ in seconds[plain]), **ratios(seconds[name], seconds[plain]),
            "time promised": promised, "memory": (memory[name] + held) / (memory[plain] + held),
            "memory promised": MEMORY.get(type(b.model.model).__name__, 1.3),
            "memory without weights": memory[name] / memory[plain],
            "memory without weights, MB": memory[name] / 2 ** 20, "the same, plain": memory[plain] / 2 ** 20,
            "weights, MB": held / 2 ** 20}


def benched(shape, side, cfg, args):
    """A Bench of one of SHAPES, or of the miniature."""
    model, clip, _ = load_miniature()
    if shape is None:
        return Bench(model, clip, side, args.steps, cfg=cfg)
    return Bench(random_model(shape, args.dtype), clip, side, args.large_steps, cfg=cfg)


def random_model(shape, dtype="float32", **other):
    """A U-Net of one of SHAPES, or a FLUX, with random weights, for the miniature's text embeddings.

    other: changes to its configuration.
    """
    kind, base = KINDS[shape]
    width = CLIP["hidden_size"]
    if shape == "Flux":
        config = kind({**FLUX, "context_in_dim": width, **other})
    else:
        pooled = {"adm_in_channels": width + 6 * 256} if "adm_in_channels" in SHAPES[shape] else {}
        config = kind({**SHAPES[shape], "context_dim": width, **pooled, **other})
    config.set_inference_dtype(getattr(torch, dtype), None)
    model = base(config)
    for name, p in model.named_parameters():
        one = name.endswith(("weight", "scale"))
        p.data.normal_(0, p[0].numel() ** -0.5) if p.ndim > 1 else p.data.fill_(float(one))
    network = model.diffusion_model
    (network.final_layer.linear if shape == "Flux" else network.out[2]).weight.data.mul_(0.2)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def about() -> dict:
    """The machine, versions and attention function of a result."""
    device, known = comfy.model_management.get_torch_device(), Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in known.read_text().splitlines()
             if "model name" in line] if known.exists() else []
    processor = (names or [platform.processor() or platform.machine()])[0]
    graphics = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return {"machine": f"{processor}, {torch.get_num_threads()} threads{graphics}",
            "versions": {"torch": torch.__version__, "comfyui": comfyui_version.__version__},
            "attention": attention.optimized_attention.__name__}


def report(table) -> str:
    def line(name, *cells):
        return f"  {name:56s}" + "".join(f"{cell:>{width}s}" for cell, width in zip(cells, (7, 14, 11, 9, 9, 9, 9)))

    lines = [line("", "time", "range", "processor", "promise", "memory", "promise", "tensors")]
    for name, r in table.items():
        low, high = r["time, range"]
        lines.append(line(name, f"{r['time']:.3f}", f"{low:.2f} - {high:.2f}", f"{r['processor time']:.3f}",
                          f"{r['time promised'] or math.nan:.3f}", f"{r['memory']:.3f}", f"{r['memory promised']:.2f}",
                          f"{r['memory without weights']:.3f}"))
    return "\n".join(lines)


def table(results) -> str:
    """The rows of docs/benchmarks.md: processor time over plain sampling's, with the promised one, and the most memory
    on any model. On a graphics card it is time, because the processor waits for the card."""
    clock = "time" if torch.cuda.is_available() else "processor time"
    models = [name for name in MODELS if name in results]
    lines = [f"| | {' | '.join(models)} | peak memory |", "|---|" + "---|" * (len(models) + 1)]
    for editor in EDITORS:
        found = [results[name]["measured"].get(editor) for name in models]
        if not any(found):
            continue
        cells = [f"{r[clock]:.2f}" + (f" ({r['time promised']:.2f})" if r["time promised"] else "") if r else ""
                 for r in found]
        lines.append(f"| {editor} | {' | '.join(cells)} | {max(r['memory'] for r in found if r):.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of the miniature")
    parser.add_argument("--large-steps", type=int, default=2, help="of the U-Nets with random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"], help="of these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "only")} | {
        "sampler": "euler", "inject": DEFAULTS}
    print("; ".join(map(str, about().values())))
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    args.out.parent.mkdir(exist_ok=True)
    with torch.inference_mode():
        for name, (shape, side, editors, cfg) in ((name, MODELS[name]) for name in args.only):
            measured = measure(benched(shape, side, cfg, args), editors, args.rounds)
            results[name] = {"settings": {**settings, "cfg": cfg}, **about(), "measured": measured}
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}\n{report(results[name]['measured'])}", flush=True)
    print(table(results))
