"""Speed and memory of an edit: against the published pipelines, against plain sampling, and as a run grows.

    python tools/dev.py bench speed [--only peers learned nodes growth] [--rounds 5] [--steps 10] [--community FOLDER]

Peers: diffusers' pipelines with equal weights, steps and device, from the same noise. Their weights require no
    gradient. The model is SD1.5's U-Net with random weights and --channels at its top. FOLDER is diffusers'
    examples/community, which its package does not contain. Without it Prompt-to-Prompt is left out. "difference" is the
    relative distance of the two results, where they should be equal.
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
import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import diffusers
import torch
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite.pipeline_stable_diffusion_attend_and_excite import (  # noqa: E501
    StableDiffusionAttendAndExcitePipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline,
)
from diffusers.pipelines.ledits_pp import LEditsPPPipelineStableDiffusion
from tqdm import tqdm

from ..editing import replay as replaying
from ..host.tokens import tokenize
from ..inversion.trajectory import Theta
from ..miniature.model import load_miniature
from ..miniature.scenes import held_out_edit
from ..nodes.attention.p2p import PalimpsestAttentionInject
from ..nodes.blending.diffedit import PalimpsestDiffEditMask
from ..nodes.guidance.attend_excite import PalimpsestAttendExcite
from ..nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from ..nodes.guidance.ledits import PalimpsestLEDITS
from ..nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance
from ..showcase.guidance.sega import concepts
from ..showcase.rows import output
from . import twin
from .cost import CFG, CONCEPT, DEFAULTS, EDITORS, Bench, about, clocked, peak, random_unet, ratios
from .inversions import METHODS
from .null_text import authors, replay

RESULTS = Path(__file__).parent / "results" / "speed.json"


class Peers(Bench):
    """A model with its inversion, and diffusers' pipelines of the same weights."""

    def __init__(self, model, clip, size, steps, community=None, **of):
        super().__init__(model, clip, size, steps, **of)
        self.size, self.community, self.device = size, community, comfy.model_management.get_torch_device()
        concept = clip.encode_from_tokens_scheduled(clip.tokenize(CONCEPT))
        texts = {"": self.null, CONCEPT: concept, **dict(zip(self.texts, (self.source, self.target)))}
        lengths = {text: 2 + sum(len(w.positions) for w in tokenize(clip, text).words) for text in texts}
        with torch.inference_mode(False):
            self.prompts = twin.Prompts({text: c[0][0].to(self.device, copy=True) for text, c in texts.items()},
                                        lengths)
            path = zip(self.inversion.latents, self.inversion.sigmas)
            self.path = [twin.z_of(x, s).to(self.device, copy=True) for x, s in path]
        self.prompts.device, own = self.device, clip.tokenizer.clip_l.tokenizer
        self.prompts.encode, self.prompts.decode = own.encode, own.decode

    def pipeline(self, kind, scheduler=None, **parts):
        scheduler = scheduler or diffusers.DDIMScheduler(**twin.SCHEDULE, clip_sample=False, set_alpha_to_one=True)
        with torch.inference_mode(False):
            network = twin.unet(self.model, self.size).requires_grad_(False).to(self.device)
        made = kind(vae=None, text_encoder=self.prompts, tokenizer=self.prompts, safety_checker=None,
                    feature_extractor=None,
                    unet=network, scheduler=scheduler, requires_safety_checker=False, **parts)
        made.set_progress_bar_config(disable=True)
        return made

    def from_community(self, name, kind):
        spec = importlib.util.spec_from_file_location(name, self.community / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.tqdm = partial(tqdm, disable=True)
        return self.pipeline(getattr(module, kind))

    def call(self, pipeline, *args, rows=1, **settings):
        """The last z of a pipeline's run from the inversion's noise, only its last row."""
        z = self.path[0].repeat(rows, 1, 1, 1)
        settings |= {"latents": z, "output_type": "latent", "num_inference_steps": self.steps, "guidance_scale": CFG}
        return pipeline(*args, **settings).images[-1:]

    def z(self, model):
        """The last z of our run from the same noise."""
        return self.model.model.process_latent_in(self.run(model))

    def sampled(self):
        """The INVERSION whose trajectory is the source sampled with CFG, as in the peers' source branch."""
        path = []
        end = self.run(self.model, positive=self.source, callback=lambda i, x0, x, total: path.append(x.cpu()))
        return replace(self.inversion, latents=(*path, self.model.model.process_latent_in(end)))


def plain(b):
    theirs = b.pipeline(diffusers.StableDiffusionPipeline)
    return lambda: b.z(b.model), lambda: b.call(theirs, b.texts[1])


def inject(b, inversion):
    settings = {**DEFAULTS, "self_resolution": min(1.0, 16 / b.size)}  # theirs: up to 16² tokens
    return b.z(PalimpsestAttentionInject.execute(b.model, inversion, b.edit, **settings).result[0])


def prompt_to_prompt(b, known=False):
    theirs = b.from_community("pipeline_prompt2prompt", "Prompt2PromptPipeline")
    cross = (int(DEFAULTS["cross_end"] * b.steps) + 0.5) / (b.steps + 1)  # theirs is a share of one step more
    schedule = {"edit_type": "replace", "n_cross_replace": cross, "n_self_replace": DEFAULTS["self_end"]}
    source = b.sampled()
    return (lambda: inject(b, source if known else b.sampled()),
            lambda: b.call(theirs, list(b.texts), rows=2, cross_attention_kwargs=schedule))


def sega(b, count):
    theirs, ours = b.pipeline(diffusers.SemanticStableDiffusionPipeline), concepts(count)(b)
    each = {"editing_prompt": b.texts[1], "reverse_editing_direction": False, "edit_guidance_scale": 5.0,
            "edit_warmup_steps": 0,
            "edit_cooldown_steps": b.steps, "edit_threshold": 0.9, "edit_weights": 1.0}
    each = {name: [value] * count for name, value in each.items()}
    return lambda: b.z(ours), lambda: b.call(theirs, b.texts[1], edit_momentum_scale=0.1, edit_mom_beta=0.4, **each)


def ledits_pipeline(b):
    solver = diffusers.DPMSolverMultistepScheduler(**twin.SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=2)
    solver.set_timesteps(b.steps)
    return b.pipeline(LEditsPPPipelineStableDiffusion, solver)


def ledits_invert(b):
    theirs = ledits_pipeline(b)
    theirs.encode_image = lambda *args, **kwargs: (b.path[-1], None)
    blank = torch.zeros(1, 3, 8, 8)
    theirs.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda *args, **kwargs: (blank,))
    return (lambda: b.inverted("LEDITS++", source=b.null).theta["z"].tensor,
            lambda: theirs.invert(None, num_inversion_steps=b.steps, skip=0.0) and theirs.zs, None)


def ledits(b, count):
    theirs = ledits_pipeline(b)
    inversion = b.inverted("LEDITS++", source=b.null, sigmas=theirs.scheduler.sigmas)
    maps = inversion.theta["z"].tensor.clone()
    maps[-1] = 0  # diffusers drops it
    inversion = replace(inversion, theta={**inversion.theta, "z": Theta(maps, "step", "step")})
    model, *start = replaying.replay(b.model, inversion)
    for _ in range(count):
        model = output(PalimpsestLEDITS, model=model, clip=b.clip, concept=CONCEPT)
    theirs.eta, theirs.batch_size, theirs.inversion_steps = 1.0, 1, theirs.scheduler.timesteps
    with torch.inference_mode(False):
        theirs.zs, theirs.init_latents = (t.to(b.device, copy=True) for t in (
            maps, twin.z_of(inversion.latents[0], inversion.sigmas[0])))
    each = {"editing_prompt": CONCEPT, "reverse_editing_direction": False, "edit_guidance_scale": 5.0,
            "edit_warmup_steps": 0,
            "edit_cooldown_steps": b.steps, "edit_threshold": 0.9}
    each = {name: [value] * count for name, value in each.items()}
    return (lambda: b.model.model.process_latent_in(b.run(model, positive=b.null, cfg=1.0, start=start)),
            lambda: theirs(output_type="latent", **each).images)


def diffedit(b):
    theirs = b.pipeline(diffusers.StableDiffusionDiffEditPipeline,
                        inverse_scheduler=diffusers.DDIMInverseScheduler(**twin.SCHEDULE, clip_sample=False))
    theirs.vae = SimpleNamespace(dtype=torch.float32)  # the pipeline reads only this
    return theirs


def ddim_invert(b):
    theirs = diffedit(b)

    def ours():
        inversion = b.inverted("DDIM")
        return twin.z_of(inversion.latents[0], inversion.sigmas[0])

    return ours, lambda: theirs.invert(b.texts[0], b.path[-1], inpaint_strength=1.0, num_inference_steps=b.steps,
                                       guidance_scale=1.0).latents[:, 0]


def diffedit_mask(b):
    theirs = diffedit(b)
    return (lambda: b.other(PalimpsestDiffEditMask, strength=481 / 999, clamp=1.5, seed=5),
            lambda: torch.from_numpy(theirs.generate_mask(
                b.path[-1], b.texts[1], source_prompt=b.texts[0], num_maps_per_mask=10, mask_thresholding_ratio=1.5,
                generator=torch.Generator().manual_seed(5))).float())


def attend_excite(b):
    theirs, words = b.pipeline(StableDiffusionAttendAndExcitePipeline), ("star", "grass")
    tokens = b.edit.pairs[0].target
    named = [position for word in words for position in tokens.find(word).positions]
    ours = b.other(PalimpsestAttendExcite, words=", ".join(words), thresholds="")
    return lambda: b.z(ours), lambda: b.call(theirs, b.texts[1], named, thresholds={}, max_iter_to_alter=b.steps // 2,
                                             attn_res=(b.size // 4, b.size // 4))


def cross_attention_guidance(b):
    """The direction from the source's embedding to the target's makes one of the other.

    Their pipeline moves the null prompt's row by its own maps, ours moves both rows alike, so the results differ.
    """
    without = dict.fromkeys(("inverse_scheduler", "caption_generator", "caption_processor"))
    theirs = b.pipeline(StableDiffusionPix2PixZeroPipeline, **without)
    source, target = (b.prompts.embeddings[b.prompts.texts.index(text)] for text in b.texts)
    return (lambda: b.z(b.other(PalimpsestCrossAttentionGuidance, inversion=b.sampled())),
            lambda: b.call(theirs, b.texts[0], source_embeds=source, target_embeds=target), None)


def null_text(b, start, iterations=10):
    def ours():
        return b.inverted("Null-Text", start=start, negative=b.null if start == "negative" else None,
                          iterations=iterations)

    if b.community is None:
        return ours, lambda: authors(b.model, b.inversion, b.null, CFG,
                                     10), lambda found: distance(b, replayed(b, found))
    theirs = b.from_community("pipeline_null_text_inversion", "NullTextPipeline")
    theirs.num_inference_steps = b.steps
    theirs.scheduler.set_timesteps(b.steps)

    def learn():
        return theirs.null_optimization(b.path[::-1], theirs.get_context(b.texts[0]), 10, 1e-5)

    def reached(found):
        if not isinstance(found, list):
            return distance(b, replayed(b, found))
        return distance(b, theirs(b.texts[0], found, b.path[0], b.steps, guidance_scale=CFG,
                                  output_type="latent").images)

    return ours, learn, reached


def replayed(b, learned):
    return b.model.model.process_latent_in(replay(b.model, learned, b.source, b.null, CFG))


def distance(b, z):
    return float((z - b.path[-1]).norm() / b.path[-1].norm())


# name: a function of Peers that gives ours, theirs and, where they should not be equal, how far each result is off
NARROW = {
    "plain sampling with CFG": plain,
    "Prompt-to-Prompt, the source sampled too": prompt_to_prompt,
    "Prompt-to-Prompt, one edit more of a known source": partial(prompt_to_prompt, known=True),
    "SEGA, one concept": partial(sega, count=1),
    "SEGA, three concepts": partial(sega, count=3),
    "LEDITS++, the inversion": ledits_invert,
    "LEDITS++, one concept": partial(ledits, count=1),
    "LEDITS++, two concepts": partial(ledits, count=2),
    "DDIM inversion": ddim_invert,
    "DiffEdit's mask": diffedit_mask,
    "Attend-and-Excite, a move a step": attend_excite,
    "pix2pix-zero, the source sampled too": cross_attention_guidance,
}
TRAINED = {
    "Null-text, from the source prompt (default)": partial(null_text, start="source prompt"),
    "Null-text, from the null prompt": partial(null_text, start="negative"),
    "Null-text, from the source prompt, at most 2 updates, theirs 10": partial(null_text, start="source prompt",
                                                                              iterations=2),
}


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
    model = random_unet("SD1.5", model_channels=args.channels)
    return measured(Peers(model, load_miniature()[1], args.size, args.steps, args.community), NARROW, args)


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
        if args.community or "Prompt-to-Prompt" not in name:
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
    for part in ("peers", "learned"):
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
        print("No --community: Prompt-to-Prompt is left out, and null-text's peer is the published loop on this host.")
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


PARTS = {"peers": peers, "learned": learned, "nodes": nodes, "growth": growth}
