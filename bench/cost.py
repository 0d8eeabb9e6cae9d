"""What an edit costs: time and peak memory of edited runs beside plain CFG sampling, on the same attention backend.

    python tools/dev.py bench cost [--rounds 5] [--steps 20] [--large-steps 2] [--dtype float32] [--only small|large]

Two models: the miniature on 16 × 16 latents, and a random U-Net of SD1.5's shape on 64 × 64. In each round every run is
timed once, plain and edited in turn; a ratio is edited / plain of one round, its median over the rounds is told with its
range, and beside it the ratio of processor times, which other jobs of the machine disturb less. The reference's rows cost
the forwards of r rows on a share f of the steps, so an edit is promised to take at most 1 + f · r / 2B + 0.1 times plain
sampling of B rows. Memory is the weights and the largest sum of tensors that are alive at once in a run, promised to be at
most 1.3 times plain's; the tensors alone stand beside. Writes bench/results/cost.json.
"""
import argparse
import json
import platform
import time
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

from ..attention.alignment import PromptEdit, align
from ..host.tokens import encode, tokenize_rows
from ..miniature.model import load_miniature
from ..nodes.attention import PalimpsestAttentionInject, PalimpsestAttentionStore
from ..nodes.blending import PalimpsestLatentBlend
from ..nodes.inversion import PalimpsestDDIMInvert, PalimpsestReplay
from .inversions import execute

RESULTS = Path(__file__).parent / "results" / "cost.json"
SOURCE, TARGET = "a photo of a red star on green grass", "a photo of a blue star on green grass"
CFG, MARGIN, MEMORY = 7.5, 0.1, 1.3
DEFAULTS = {"cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "cross_resolution": 1.0,
            "self_resolution": 0.5, "word_weights": "", "word_ends": ""}
WHOLE = {**DEFAULTS, "cross_end": 1.0, "self_end": 1.0}
class Bench:
    """A model, one picture's inversion and the two prompts."""

    def __init__(self, model, clip, size, steps, width=None):
        self.model, self.steps = model, steps
        generator = torch.Generator().manual_seed(0)

        def prompt(tokens):
            (cross, extras), = encode(clip, tokens)
            return [[cross if width is None else torch.randn(*cross.shape[:2], width, generator=generator), extras]]

        source, target, null = (tokenize_rows(clip, [text]) for text in (SOURCE, TARGET, ""))
        self.source, self.target, self.null = prompt(source), prompt(target), prompt(null)
        self.edit = PromptEdit((align(source[0], target[0]),))
        latent = {"samples": torch.randn(1, 4, size, size, generator=generator)}
        self.inversion = PalimpsestDDIMInvert.execute(model, self.source, latent, steps, "ddim_uniform").result[0]
        _, self.sampler, self.sigmas, latent = PalimpsestReplay.execute(model, self.inversion, 0.0).result
        self.latent = latent["samples"]
        self.maps = PalimpsestAttentionStore.execute(model, self.inversion, self.edit, 0.25).result[0]

    def injected(self, settings):
        return PalimpsestAttentionInject.execute(self.model, self.inversion, self.edit, **settings).result[0]

    def blended(self):
        return PalimpsestLatentBlend.execute(self.injected(DEFAULTS), self.inversion, 0.2, "star", "star", 0.3,
                                             attention=self.maps).result[0]

    def sega(self, concepts):
        model = self.model
        for _ in range(concepts):
            model = execute("semantic.PalimpsestSEGAGuidance", {"model": model, "concept": self.target, "warmup": 0.0})
        return model

    def other(self, node, **settings):
        return execute(node, {"model": self.model, "inversion": self.inversion, **settings})

    def run(self, model, batch) -> tuple:
        """Seconds of one sampling, by the clock and of the processor."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.target, self.null)
        guider.set_cfg(CFG)
        x = self.latent.expand(batch, -1, -1, -1)
        began = time.perf_counter(), time.process_time()
        guider.sample(torch.zeros_like(x), x, self.sampler, self.sigmas, disable_pbar=True, seed=0).cpu()
        return time.perf_counter() - began[0], time.process_time() - began[1]

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


RUNS = {  # name: (rows of the batch, the edited MODEL)
    "Attention Inject, whole schedule": (1, lambda b: b.injected(WHOLE)),
    "Attention Inject, defaults": (1, lambda b: b.injected(DEFAULTS)),
    "Attention Inject, defaults, Latent Blend by words": (1, Bench.blended),
    "Attention Inject, whole schedule, 4 rows of one picture": (4, lambda b: b.injected(WHOLE)),
    "MasaCtrl, defaults": (1, lambda b: b.other("features.PalimpsestMutualSelfAttention")),
    "Plug-and-Play, defaults": (1, lambda b: b.other("features.PalimpsestPlugAndPlay")),
    "Free-Prompt Edit, defaults": (1, lambda b: b.other("features.PalimpsestFreePromptEdit")),
    "Noise Mask, defaults": (1, lambda b: b.other("blending.PalimpsestNoiseMask")),
    "SEGA, one concept throughout": (1, lambda b: b.sega(1)),
    "SEGA, three concepts throughout": (1, lambda b: b.sega(3)),
}


def peak(run, *args) -> int:
    """Bytes of tensors that a run has alive at most, beyond those that were there before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(*args)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(*args)
    alive = highest = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest


def measure(bench, rounds) -> dict:
    runs = {name: (edited(bench), batch) for name, (batch, edited) in RUNS.items()}
    plain = {f"plain, {batch} rows": (bench.model, batch) for batch in sorted({batch for _, batch in runs.values()})}
    every = plain | runs
    rows = {name: bench.rows(*run) for name, run in every.items()}  # warms up too
    seconds = {name: [] for name in every}
    for _ in range(rounds):
        for name, run in every.items():
            seconds[name].append(bench.run(*run))
    memory = {name: peak(bench.run, *run) for name, run in every.items()}
    weights = sum(p.numel() * p.element_size() for p in bench.model.model.parameters())
    return {name: compare(name, f"plain, {batch} rows", batch, len(bench.sigmas) - 1, seconds, rows, memory, weights)
            for name, (_, batch) in runs.items()}


def compare(name, plain, batch, steps, seconds, rows, memory, weights) -> dict:
    both = (memory[name] + weights) / (memory[plain] + weights)
    ratios, processor = ([a[clock] / b[clock] for a, b in zip(seconds[name], seconds[plain])] for clock in (0, 1))
    share = (rows[name] - rows[plain]) / steps
    return {"rows": batch, "share of steps read": share, "row passes": rows[name] / rows[plain],
            "seconds": median(s for s, _ in seconds[name]), "seconds, plain": median(s for s, _ in seconds[plain]),
            "time": median(ratios), "time, range": [min(ratios), max(ratios)], "processor time": median(processor),
            "processor time, range": [min(processor), max(processor)], "time promised": 1 + share / (2 * batch) + MARGIN,
            "memory": both, "memory promised": MEMORY, "memory without weights": memory[name] / memory[plain],
            "memory without weights, MB": memory[name] / 2 ** 20, "the same, plain": memory[plain] / 2 ** 20,
            "weights, MB": weights / 2 ** 20}


def small(args):
    model, clip, _ = load_miniature()
    return Bench(model, clip, 16, args.steps)


def large(args):
    """SD1.5's U-Net of random weights."""
    config = comfy.supported_models.SD15({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "legacy": False, "use_checkpoint": False, "adm_in_channels": None,
        "use_temporal_attention": False, "use_temporal_resblock": False})
    config.set_inference_dtype(getattr(torch, args.dtype), None)
    model = comfy.model_base.BaseModel(config)
    for name, p in model.named_parameters():
        p.data.normal_(0, p[0].numel() ** -0.5) if p.ndim > 1 else p.data.fill_(float(name.endswith("weight")))
    model.diffusion_model.out[2].weight.data.mul_(0.2)
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return Bench(patcher, load_miniature()[1], 64, args.large_steps, width=768)


def report(table) -> str:
    lines = [f"{'':58s}{'time':>7s}{'range':>14s}{'processor':>11s}{'promise':>9s}{'memory':>9s}{'promise':>9s}{'tensors':>9s}"]
    for name, r in table.items():
        low, high = r["time, range"]
        lines.append(f"  {name:56s}{r['time']:>7.3f}{f'{low:.2f} - {high:.2f}':>14s}{r['processor time']:>11.3f}{r['time promised']:>9.3f}"
                     f"{r['memory']:>9.3f}{r['memory promised']:>9.2f}{r['memory without weights']:>9.3f}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of the miniature")
    parser.add_argument("--large-steps", type=int, default=2, help="of the U-Net of SD1.5's shape")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the same")
    parser.add_argument("--only", choices=["small", "large"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    models = {"small": ("miniature, 16 × 16", small), "large": ("SD1.5's shape, 64 × 64", large)}
    backend = attention.optimized_attention.__name__
    about = {"settings": {k: v for k, v in vars(args).items() if k not in ("out", "only")} | {"cfg": CFG, "sampler": "euler",
                          "inject": {"defaults": DEFAULTS, "whole schedule": WHOLE}},
             "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
                        f"{comfy.model_management.get_torch_device()}",
             "versions": {"torch": torch.__version__, "comfyui": comfyui_version.__version__}, "attention": backend}
    print(f"{about['machine']}; torch {torch.__version__}, ComfyUI {comfyui_version.__version__}, {backend}")
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    args.out.parent.mkdir(exist_ok=True)
    with torch.inference_mode():
        for name, make in (m for key, m in models.items() if args.only in (None, key)):
            results[name] = {**about, "measured": measure(make(args), args.rounds)}
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}\n{report(results[name]['measured'])}", flush=True)
