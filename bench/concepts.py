"""Learned concepts whose exact look is known: is it the subject, and is the class still the class?

    python tools/dev.py bench concepts [--subjects 8] [--seeds 1] [--only NAME ...] [--steps 400]

A subject (miniature/subjects.py) is an object with two colours, a pattern and a mark that no caption states. Each
method learns it from four pictures, with and without class-prior preservation, at the settings below.
match: dB to exact renders inside the object, on seen and unseen grounds, and how far that is below the subject's own
pictures through the autoencoder, which have 17 to 24. Another subject has 8.
class: the share of pictures of other objects of the class, and of other classes, whose colour, shape and ground read
as their captions say; and in brackets of the class's own alone.
drift: dB between those pictures and the ones that the frozen model makes of the same noise. Higher is less drift.
noun: match of pictures of the bare noun. High means that every one of its class has become the subject.
prompt: the share of the subject's pictures whose shape and ground read as their captions say.
pres, div: of the DreamBooth paper, on eight pictures of "a photo of a NOUN". pres: how alike they and the pictures to
    learn from are, the mean cosine of the reader's features; less is better. div: how unlike they are each other, the
    mean of 1 - cosine; more is better. And both of the frozen model's pictures.
seconds: of one core, without class pictures.

With masks, what lies outside of the subject is not learned. DreamArtist has the first picture alone, Break-A-Scene one
picture that shows the next subject too, its words learn for all the steps and then a LoRA does.
Learn a Subject and the new word look at themselves ten times and keep the best look.
The prior keeps to what the frozen model predicted of pictures of its class, half of them of the bare noun. With a new
word these stand on the grounds of the subject's pictures alone, so that nothing says what the subject is on others.
In the row of others a third of them is of other classes.

Each learned concept gives one JSON line in bench/results/concepts.jsonl. A line that exists is not measured again.
Prints a table of all lines that were asked for and exist, and what the prior costs where runs with and without it
exist, and writes both to bench/results/concepts.json, with 95 % intervals over subjects: a subject's seeds count as
one. A row that was made of more lines than there are stays.
    --table     measures nothing
"""
import argparse
import itertools
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path

import comfy.sample
import torch
import torch.nn.functional as F

from ..concept.break_a_scene import MaskAttention, caption, unions
from ..concept.custom_diffusion import KeysAndValues
from ..concept.dreamartist import ENDING, PositiveNegative
from ..concept.dreambooth import RARE, AllWeights
from ..concept.lora import LoRA
from ..concept.neti import NeuralSpaceTime
from ..concept.p_plus import ExtendedTextualInversion
from ..concept.prospect import PromptSpectrum
from ..concept.svdiff import SpectralShifts
from ..concept.textual_inversion import TextualInversion
from ..editing.concepts import SLOT, ConceptImages, Example, Prior
from ..editing.learning import applied, learn_concept
from ..editing.watching import Watch
from ..editing.word_spaces import prompt
from ..metrics.pixels import psnr
from ..miniature import scenes
from ..miniature.model import load_miniature
from ..miniature.reader import features, read
from ..miniature.subjects import SEEN, UNSEEN, match, subject, subject_scenes
from .stats import paired_bootstrap

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "concepts.json"
LINES = RESULTS.with_suffix(".jsonl")
SUBJECT = "DreamBooth, LoRA as in Learn a Subject"
MASKED = f"{SUBJECT}, with masks"
NAMED = "DreamBooth, LoRA and a new word"
OTHERS = f"{NAMED}, others"
TWO_WORDS, PARTS = "DreamArtist, one picture", "Break-A-Scene, one picture of two"
WORD, OTHER = "subject", "other"  # names of what is learned
METHODS = {
    SUBJECT: lambda noun: [LoRA(4e-3, 8, layers="all", text_encoder=True)],
    MASKED: lambda noun: [LoRA(4e-3, 8, layers="all", text_encoder=True)],
    NAMED: lambda noun: [TextualInversion(WORD, noun, 1, 2e-2), LoRA(4e-3, 8, layers="all", text_encoder=True)],
    OTHERS: lambda noun: METHODS[NAMED](noun),
    "DreamBooth, all weights": lambda noun: [AllWeights(2e-4)],
    "Textual Inversion": lambda noun: [TextualInversion(WORD, noun, 1, 5e-2)],
    "P+": lambda noun: [ExtendedTextualInversion(WORD, noun, 1, 5e-2)],
    "ProSpect": lambda noun: [PromptSpectrum(WORD, noun, 1, 5e-2)],
    "NeTI": lambda noun: [NeuralSpaceTime(WORD, noun, 1, 8e-3)],
    "Custom Diffusion": lambda noun: [KeysAndValues(2e-3)],
    "DreamBooth, LoRA on attention": lambda noun: [LoRA(3e-3)],
    "SVDiff": lambda noun: [SpectralShifts(3e-2)],
    TWO_WORDS: lambda noun: [TextualInversion(name, noun, 1, 5e-2) for name in (WORD, WORD + ENDING)],
    PARTS: lambda noun: [LoRA(2e-3, 8, layers="all")],  # under the words, which learn before
}
ALONE = "Textual Inversion", "P+", "ProSpect", "NeTI", TWO_WORDS, PARTS  # words that are learned without a prior
WORDS = *ALONE, NAMED, OTHERS
OBJECTIVES = {TWO_WORDS: PositiveNegative(f"embedding:{WORD}{ENDING}", 3.0), PARTS: MaskAttention()}
BATCH, PICTURES, SAMPLED, CFG = 4, 4, 20, 3.0
OWN = 8  # of the twelve pictures that tell what became of others of the class
NUMBERS = ("seen", "unseen", "class", "own", "drift", "noun", "seconds", "ceiling", "prompt", "pres", "div",
           "frozen_pres", "frozen_div")


class Lab:
    """The miniature, and what the frozen one makes."""

    def __init__(self):
        self.model, self.clip, self.vae = load_miniature()
        self.made: dict = {}

    def sample(self, model, clip, texts, seed, words=None, without=()):
        """Pictures [B,H,W,3] of some texts.

        words: in layers or stages, so that each text has a run of its own.
        without: a negative prompt of each text.
        """
        if words:
            noise = comfy.sample.prepare_noise(torch.zeros(len(texts), 4, 16, 16), seed)
            prompts = [prompt(clip, words, text) if "embedding:" in text else
                       clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
            null = together(clip, [""])
            return self.vae.decode(torch.cat([self._made(model, one, null, n[None], seed)
                                              for one, n in zip(prompts, noise)]))
        noise = comfy.sample.prepare_noise(torch.zeros(len(texts), 4, 16, 16), seed)
        return self.vae.decode(self._made(model, together(clip, texts), together(clip, without or [""]), noise, seed))

    def _made(self, model, conditioning, null, noise, seed):
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(noise))
        return comfy.sample.sample(model, noise, SAMPLED, CFG, "ddim", "ddim_uniform", conditioning, null, empty,
                                   seed=seed, disable_pbar=True)

    def frozen(self, texts, seed):
        key = *texts, seed
        if key not in self.made:
            self.made[key] = self.sample(self.model, self.clip, texts, seed)
        return self.made[key]

    def prior(self, noun, grounds, others=0) -> ConceptImages:
        """Pictures of the class: one of every colour, on any ground, and twelve of the bare noun, on these grounds.

        others: how many of other classes, under other texts than those that are measured.
        """
        pairs = [(c, g) for c, g in zip(scenes.COLOURS, scenes.GROUNDS * 3) if (c, g) not in scenes.CLASHES]
        texts = [f"a photo of a {c} {noun} on a {g} background" for c, g in pairs]
        texts += [f"a photo of a {noun} on a {g} background" for g in grounds for _ in range(12 // len(grounds))]
        shown = zip(list(scenes.COLOURS) * 2, scenes.GROUNDS[1:] * 4,
                    itertools.cycle(s for s in scenes.SHAPES if s != noun))
        texts += [f"a photo of a {c} {s} on a {g} background" for c, g, s in shown
                  if (c, g) not in scenes.CLASHES][:others]
        latents = self.vae.encode(self.frozen(tuple(texts), 99))
        return ConceptImages(tuple(Example(z, text) for z, text in zip(latents, texts)))


def together(clip, texts) -> list:
    """One CONDITIONING of some texts, a row each."""
    rows = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
    return [[torch.cat([row[0] for row in rows]), {}]]


def class_texts(noun) -> tuple:
    others = [s for s in scenes.SHAPES if s != noun]
    pairs = [(c, g) for c, g in zip(list(scenes.COLOURS) * 2, scenes.GROUNDS * 3) if (c, g) not in scenes.CLASHES]
    own = [f"a photo of a {c} {noun} on a {g} background" for c, g in pairs[:OWN]]
    return (*own, *(f"a photo of a {c} {s} on a {g} background" for s, (c, g) in zip(others, pairs[OWN:12])))


def given(lab, number, method) -> ConceptImages:
    """What a method learns a subject from."""
    one, shows = subject(number), subject_scenes(number, 1 if method == TWO_WORDS else PICTURES)
    if method == PARTS:
        beside = (replace(subject(n).obj, x=x, y=y, r=0.19) for n, (x, y) in zip((number, number + 1), scenes.PAIRS[0]))
        shows = [replace(shows[0], objs=tuple(beside))]
    latents = lab.vae.encode(torch.stack([torch.from_numpy(scenes.render(s)) for s in shows]))
    areas = [torch.stack([torch.from_numpy(scenes.covered(o)) for o in s.objs]) for s in shows]
    masks = [F.interpolate(area[:, None], latents.shape[-2:])[:, 0] for area in areas]
    if method == PARTS:
        found = dict(zip((f"embedding:{WORD}", f"embedding:{OTHER}"), masks[0]))
        return ConceptImages(tuple(Example(latents[0], caption(words), {word: found[word] for word in words})
                                   for words in unions([*found])))
    return ConceptImages(tuple(Example(z, one.caption(SEEN[i % len(SEEN)]), {SLOT: mask[0]} if method == MASKED else {})
                               for i, (z, mask) in enumerate(zip(latents, masks))), RARE)


def exact(number) -> torch.Tensor:
    """A subject's pictures [4,H,W,3]."""
    return torch.stack([torch.from_numpy(scenes.render(s)) for s in subject_scenes(number, PICTURES)])


def ceiling(lab, number) -> float:
    """The match of a subject's own pictures through the autoencoder."""
    return float(match(lab.vae.decode(lab.vae.encode(exact(number))), subject(number)).mean())


def measure(lab, number, method, with_prior, seed, steps) -> dict:
    one, images, model, clip = subject(number), given(lab, number, method), lab.model, lab.clip
    of_class = lab.prior(one.noun, SEEN if method in (NAMED, OTHERS) else scenes.GROUNDS, 10 * (method == OTHERS))
    prior = Prior(of_class, 1.0, predicted=True) if with_prior else None
    objective, word = OBJECTIVES.get(method), f"embedding:{WORD}"
    began = time.process_time()
    if method == PARTS:
        both = [TextualInversion(name, subject(n).noun, 1, 5e-2) for name, n in ((WORD, number), (OTHER, number + 1))]
        model, clip = applied(model, clip, learn_concept(model, clip, images, both, None, steps, BATCH, seed,
                                                         objective=objective))
    watch = Watch(max(steps // 10, 1)) if method.startswith((SUBJECT, NAMED)) else None
    learned = learn_concept(model, clip, images, METHODS[method](one.noun), prior, steps, BATCH, seed, watch=watch,
                            objective=objective)
    seconds = time.process_time() - began
    model, clip = applied(model, clip, learned)
    said = [f"a photo of {SLOT} on a {g} background" if method == PARTS else one.caption(g) for g in (*SEEN, *UNSEEN)]
    word = word if method in WORDS else RARE
    without = [text.replace(SLOT, word + ENDING) for text in said] if method == TWO_WORDS else ()
    shown = lab.sample(model, clip, [text.replace(SLOT, word) for text in said], 11, learned.tables, without)
    found, texts = match(shown, one), class_texts(one.noun)
    others, before = lab.sample(model, clip, texts, 12), lab.frozen(texts, 12)
    wanted = [scenes.parse_caption(text) for text in texts]
    right = [all(seen.get(n) == want["objects"][0][n] for n in ("shape", "colour")) and seen["ground"] == want["ground"]
             for seen, want in zip(read(others), wanted)]
    noun = lab.sample(model, clip, [one.caption(g).replace(f"{SLOT} ", "") for g in SEEN], 13)
    told = [seen["shape"] == one.noun and seen["ground"] == g for g, seen in zip((*SEEN, *UNSEEN), read(shown))]
    same, own = (f"a photo of a {one.noun}",) * 8, exact(number)
    pres, div = preserved(lab.sample(model, clip, same, 14), own)
    frozen_pres, frozen_div = preserved(lab.frozen(same, 14), own)
    return {"seen": float(found[:len(SEEN)].mean()), "unseen": float(found[len(SEEN):].mean()),
            "class": sum(right) / len(right), "own": sum(right[:OWN]) / OWN,
            "drift": float(psnr(others, before).mean()), "noun": float(match(noun, one).mean()), "seconds": seconds,
            "ceiling": ceiling(lab, number), "prompt": sum(told) / len(told), "pres": pres, "div": div,
            "frozen_pres": frozen_pres, "frozen_div": frozen_div}


def preserved(pictures, own) -> tuple:
    """(PRES, DIV) of pictures of the bare noun, beside the subject's own."""
    found, subjects = features(pictures), features(own)
    others = ~torch.eye(len(found), dtype=torch.bool)
    return float((found @ subjects.T).mean()), float(1 - (found @ found.T)[others].mean())


def by_subject(rows, name) -> list:
    """A number's mean over the seeds of each subject."""
    found = {}
    for row in rows:
        found.setdefault(row["subject"], []).append(row[name])
    return [sum(values) / len(values) for values in found.values()]


def prior_costs(rows) -> dict:
    """How many dB of match the prior costs over a method's runs that exist with it and without."""
    alone, kept = ({(r["subject"], r["seed"]): r for r in rows if r["prior"] == prior} for prior in (False, True))
    both = [{"subject": key[0], **{n: alone[key][n] - kept[key][n] for n in ("seen", "unseen")}}
            for key in alone.keys() & kept.keys()]
    return {"pairs": len(both), **{n: interval(by_subject(both, n)) for n in ("seen", "unseen")}} if both else {}


def interval(values) -> tuple:
    """(mean, low, high), 95 %. One value alone has no interval, nor have pictures that nothing changed (inf dB)."""
    found = torch.tensor(values, dtype=torch.double)
    if len(values) == 1 or not found.isfinite().all():
        return (found.mean().item(),) * 3
    return paired_bootstrap(found, torch.zeros_like(found), torch.Generator().manual_seed(0))


def to_json(value):
    """What is measured, with None for numbers that are not finite, which JSON has not."""
    return _each(value, lambda v: None if isinstance(v, float) and not math.isfinite(v) else v)


def from_json(value):
    """What is measured, with the inf dB of equal pictures for None."""
    return _each(value, lambda v: math.inf if v is None else v)


def _each(value, change):
    """change() of every number in dictionaries and lists."""
    if isinstance(value, dict):
        return {name: _each(v, change) for name, v in value.items()}
    return [_each(v, change) for v in value] if isinstance(value, (list, tuple)) else change(value)


def table(measured) -> str:
    lines = ["| | n | match, seen (below the ceiling) | unseen | prompt right | class right (its own) | drift | "
             "bare noun | PRES (frozen) | DIV (frozen) | seconds |", "|---|" + "---|" * 10]
    for name, row in from_json(measured).items():
        said = {n: _decibels(*row[n]) for n in ("seen", "unseen", "drift", "noun")}
        said |= {n: f"{said[n]} ({row['ceiling'][0] - row[n][0]:.1f})" for n in ("seen", "unseen")}
        prompt, *paper = [""] * 3 if "prompt" not in row else [f"{row['prompt'][0]:.0%}", *(
            f"{row[n][0]:.2f} ({row[f'frozen_{n}'][0]:.2f})" for n in ("pres", "div"))]
        own = f" ({row['own'][0]:.0%})" if "own" in row else ""
        cells = [str(row["n"]), said["seen"], said["unseen"], prompt, f"{row['class'][0]:.0%}{own}", said["drift"],
                 said["noun"], *paper, f"{row['seconds'][0]:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _longer(before, now, count) -> dict:
    """Of two tables each row that was made of more, in the first one's order."""
    return {name: max((table[name] for table in (now, before) if name in table), key=lambda row: row[count])
            for name in dict.fromkeys((*before, *now))}


def _decibels(mean, low, high) -> str:
    return f"{mean:.1f}{f' ± {(high - low) / 2:.1f}' * (low < high)} dB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = LINES.read_text(encoding="utf-8").splitlines() if LINES.exists() else []
    rows, keys = {}, ("subject", "method", "prior", "seed", "steps")
    for row in map(from_json, map(json.loads, kept)):
        rows[tuple(row[key] for key in keys)] = row
    with torch.inference_mode():
        lab = None if args.table else Lab()
        asked = [(n, m, p, s, args.steps) for n in range(args.subjects) for s in range(args.seeds) for m in args.only
                 for p in (False, True) if not (p and m in ALONE or m == OTHERS and not p)]
        for key in asked:
            if lab and key not in rows:
                rows[key] = dict(zip(keys, key)) | measure(lab, *key)
                with LINES.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(to_json(rows[key]), allow_nan=False) + "\n")
                print(rows[key], flush=True)
    measured = {}
    for method in args.only:
        for prior in (False, True):
            mine = [rows[key] for key in asked if key[1:3] == (method, prior) and key in rows]
            if mine:
                found = {n: interval(by_subject(had, n)) for n in NUMBERS if (had := [r for r in mine if n in r])}
                measured[f"{method}{', prior' * prior}"] = {"n": len(mine), **found}
    costs = {method: cost for method in args.only
             if (cost := prior_costs([rows[key] for key in asked if key[1] == method and key in rows]))}
    print(table(measured))
    for method, cost in costs.items():
        print(f"The prior costs {method} {_decibels(*cost['seen'])} seen, {_decibels(*cost['unseen'])} unseen "
              f"({cost['pairs']} runs)")
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    measured = _longer(before.get("measured", {}), measured, "n")
    costs = _longer(before.get("cost of the prior", {}), costs, "pairs")
    result = {"settings": {"subjects": args.subjects, "seeds": args.seeds, "steps": args.steps, "batch": BATCH},
              "machine": f"{platform.processor() or platform.machine()}, 1 thread", "measured": measured,
              "cost of the prior": costs}
    RESULTS.write_text(json.dumps(to_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
