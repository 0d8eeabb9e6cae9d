"""Learned concepts whose exact look is known: is it the subject, and is the class still the class?

    python tools/dev.py bench concepts [--subjects 8] [--seeds 1] [--only NAME ...] [--steps 100]

A subject (miniature/subjects.py) is an object with two colours, a pattern and a mark that no caption states. Each
method learns it from four pictures, with and without class-prior preservation, at the settings below.
match: dB to exact renders inside the object, on seen and unseen grounds. Another subject has 8, the subject's own
pictures through the autoencoder 17 to 26.
class: the share of pictures of other objects of the class, and of other classes, whose colour, shape and ground read
as their captions say.
drift: dB between those pictures and the ones that the frozen model makes of the same noise. Higher is less drift.
noun: match of pictures of the bare noun. High means that every one of its class has become the subject.
seconds: of one core, without class pictures.

With masks, what lies outside of the subject is not learned.
The prior keeps to what the frozen model predicted of pictures of its class, half of them of the bare noun.

Each learned concept gives one JSON line in output/concepts.jsonl. A line that exists is not measured again. Prints a
table of all lines that were asked for and exist, and writes it to bench/results/concepts.json, with 95 % intervals over
subjects and seeds.
    --table     measures nothing
"""
import argparse
import json
import platform
import time
from pathlib import Path

import comfy.sample
import torch
import torch.nn.functional as F

from ..concept.custom_diffusion import KeysAndValues
from ..concept.dreambooth import RARE, AllWeights
from ..concept.lora import LoRA
from ..concept.neti import NeuralSpaceTime
from ..concept.p_plus import ExtendedTextualInversion
from ..concept.prospect import PromptSpectrum
from ..concept.svdiff import SpectralShifts
from ..concept.textual_inversion import TextualInversion
from ..editing.concepts import SLOT, ConceptImages, Example, Prior
from ..editing.learning import applied, learn_concept
from ..editing.word_spaces import prompt
from ..metrics.pixels import psnr
from ..miniature import scenes
from ..miniature.model import load_miniature
from ..miniature.reader import read
from ..miniature.subjects import SEEN, UNSEEN, match, subject, subject_scenes
from .stats import paired_bootstrap

ROOT = Path(__file__).parents[1]
LINES, RESULTS = ROOT / "output" / "concepts.jsonl", ROOT / "bench" / "results" / "concepts.json"
MASKED = "DreamBooth, LoRA as in Learn a Subject, with masks"
METHODS = {
    "DreamBooth, LoRA as in Learn a Subject": lambda noun: [LoRA(2e-3, 8, layers="all", text_encoder=True)],
    MASKED: lambda noun: [LoRA(2e-3, 8, layers="all", text_encoder=True)],
    "DreamBooth, all weights": lambda noun: [AllWeights(2e-4)],
    "Textual Inversion": lambda noun: [TextualInversion("subject", noun, 1, 5e-2)],
    "P+": lambda noun: [ExtendedTextualInversion("subject", noun, 1, 5e-2)],
    "ProSpect": lambda noun: [PromptSpectrum("subject", noun, 1, 5e-2)],
    "NeTI": lambda noun: [NeuralSpaceTime("subject", noun, 1, 8e-3)],
    "Custom Diffusion": lambda noun: [KeysAndValues(2e-3)],
    "DreamBooth, LoRA on attention": lambda noun: [LoRA(3e-3)],
    "SVDiff": lambda noun: [SpectralShifts(3e-2)],
}
WORDS = "Textual Inversion", "P+", "ProSpect", "NeTI"  # which a prior does not concern
BATCH, PICTURES, SAMPLED, CFG = 4, 4, 20, 3.0
NUMBERS = "seen", "unseen", "class", "drift", "noun", "seconds"


class Lab:
    """The miniature, and what the frozen one makes."""

    def __init__(self):
        self.model, self.clip, self.vae = load_miniature()
        self.made: dict = {}

    def sample(self, model, clip, texts, seed, words=None):
        """Pictures [B,H,W,3] of some texts. words: in layers or stages, so that each text has a run of its own."""
        if words:
            noise = comfy.sample.prepare_noise(torch.zeros(len(texts), 4, 16, 16), seed)
            prompts = [prompt(clip, words, text) if "embedding:" in text else
                       clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
            return self.vae.decode(torch.cat([self._made(model, clip, one, n[None], seed)
                                              for one, n in zip(prompts, noise)]))
        rows = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
        together = [[torch.cat([row[0] for row in rows]), {}]]
        noise = comfy.sample.prepare_noise(torch.zeros(len(texts), 4, 16, 16), seed)
        return self.vae.decode(self._made(model, clip, together, noise, seed))

    def _made(self, model, clip, conditioning, noise, seed):
        null = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(noise))
        return comfy.sample.sample(model, noise, SAMPLED, CFG, "ddim", "ddim_uniform", conditioning, null, empty,
                                   seed=seed, disable_pbar=True)

    def frozen(self, texts, seed):
        key = *texts, seed
        if key not in self.made:
            self.made[key] = self.sample(self.model, self.clip, texts, seed)
        return self.made[key]

    def prior(self, noun) -> ConceptImages:
        """Pictures of the class: one of every colour, and as many of the bare noun, on every ground."""
        pairs = [(c, g) for c, g in zip(scenes.COLOURS, scenes.GROUNDS * 3) if (c, g) not in scenes.CLASHES]
        texts = [f"a photo of a {c} {noun} on a {g} background" for c, g in pairs]
        texts += [f"a photo of a {noun} on a {g} background" for g in scenes.GROUNDS for _ in range(2)]
        latents = self.vae.encode(self.frozen(tuple(texts), 99))
        return ConceptImages(tuple(Example(z, text) for z, text in zip(latents, texts)))


def class_texts(noun) -> tuple:
    others = [s for s in scenes.SHAPES if s != noun]
    pairs = [(c, g) for c, g in zip(list(scenes.COLOURS) * 2, scenes.GROUNDS * 3) if (c, g) not in scenes.CLASHES]
    own = [f"a photo of a {c} {noun} on a {g} background" for c, g in pairs[:8]]
    return (*own, *(f"a photo of a {c} {s} on a {g} background" for s, (c, g) in zip(others, pairs[8:12])))


def measure(lab, number, method, with_prior, seed, steps) -> dict:
    one = subject(number)
    shows = subject_scenes(number, PICTURES)
    latents = lab.vae.encode(torch.stack([torch.from_numpy(scenes.render(s)) for s in shows]))
    areas = torch.stack([torch.from_numpy(scenes.covered(s.objs[0])) for s in shows])
    masks = F.interpolate(areas[:, None], latents.shape[-2:])[:, 0]
    given = ConceptImages(tuple(Example(z, one.caption(SEEN[i % len(SEEN)]), {SLOT: mask} if method == MASKED else {})
                                for i, (z, mask) in enumerate(zip(latents, masks))), RARE)
    prior = Prior(lab.prior(one.noun), 1.0, predicted=True) if with_prior else None
    began = time.process_time()
    learned = learn_concept(lab.model, lab.clip, given, METHODS[method](one.noun), prior, steps, BATCH, seed)
    seconds = time.process_time() - began
    model, clip = applied(lab.model, lab.clip, learned)
    word = "embedding:subject" if learned.words or learned.tables else RARE
    shown = lab.sample(model, clip, [one.caption(g).replace(SLOT, word) for g in (*SEEN, *UNSEEN)], 11, learned.tables)
    found, texts = match(shown, one), class_texts(one.noun)
    others, before = lab.sample(model, clip, texts, 12), lab.frozen(texts, 12)
    wanted = [scenes.parse_caption(text) for text in texts]
    right = [all(seen.get(n) == want["objects"][0][n] for n in ("shape", "colour")) and seen["ground"] == want["ground"]
             for seen, want in zip(read(others), wanted)]
    noun = lab.sample(model, clip, [one.caption(g).replace(f"{SLOT} ", "") for g in SEEN], 13)
    return {"seen": float(found[:len(SEEN)].mean()), "unseen": float(found[len(SEEN):].mean()),
            "class": sum(right) / len(right), "drift": float(psnr(others, before).mean()),
            "noun": float(match(noun, one).mean()), "seconds": seconds}


def interval(values) -> tuple:
    """(mean, low, high), 95 %. One value alone has no interval, nor have pictures that nothing changed (inf dB)."""
    found = torch.tensor(values, dtype=torch.double)
    if len(values) == 1 or not found.isfinite().all():
        return (found.mean().item(),) * 3
    return paired_bootstrap(found, torch.zeros_like(found), torch.Generator().manual_seed(0))


def table(measured) -> str:
    lines = ["| | n | match, seen | unseen | class right | drift | bare noun | seconds |", "|---|" + "---|" * 7]
    for name, row in measured.items():
        said = {n: _decibels(*row[n]) for n in ("seen", "unseen", "drift", "noun")}
        cells = [str(row["n"]), said["seen"], said["unseen"], f"{row['class'][0]:.0%}", said["drift"], said["noun"],
                 f"{row['seconds'][0]:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _decibels(mean, low, high) -> str:
    return f"{mean:.1f}{f' ± {(high - low) / 2:.1f}' * (low < high)} dB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    LINES.parent.mkdir(exist_ok=True)
    kept = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()] if LINES.exists() else []
    rows, keys = {}, ("subject", "method", "prior", "seed", "steps")
    for row in kept:
        rows[tuple(row[key] for key in keys)] = row
    with torch.inference_mode():
        lab = None if args.table else Lab()
        asked = [(n, m, p, s, args.steps) for n in range(args.subjects) for s in range(args.seeds) for m in args.only
                 for p in (False, True) if not (p and m in WORDS)]
        for key in asked:
            if lab and key not in rows:
                rows[key] = dict(zip(keys, key)) | measure(lab, *key)
                with LINES.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[key]) + "\n")
                print(rows[key], flush=True)
    measured = {}
    for method in args.only:
        for prior in (False, True):
            mine = [rows[key] for key in asked if key[1:3] == (method, prior) and key in rows]
            if mine:
                found = {n: interval([r[n] for r in mine]) for n in NUMBERS}
                measured[f"{method}{', prior' * prior}"] = {"n": len(mine), **found}
    print(table(measured))
    result = {"settings": {"subjects": args.subjects, "seeds": args.seeds, "steps": args.steps, "batch": BATCH},
              "machine": f"{platform.processor() or platform.machine()}, 1 thread", "measured": measured}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
