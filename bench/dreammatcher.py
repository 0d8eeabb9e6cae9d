"""DreamMatcher on subjects that were learned: is the new picture nearer to the subject, and what else changes?

    python tools/dev.py bench dreammatcher [--subjects 4] [--draws 3]

Each subject is learned from four pictures as Learn a Subject does, without a prior (bench concepts). Then pictures of
it are drawn from some noise on the four grounds of those pictures and on two others, by the learned MODEL alone and
with DreamMatcher in several settings. Its reference is the first of the four pictures.
match: dB to exact renders inside the object, as in bench concepts, and the gain over the learned MODEL alone.
rim: dB between the outer eighth of the picture, where no subject is, and that of the learned MODEL alone. Higher is
less change.
time: of sampling, over that of the learned MODEL alone.

Writes bench/results/dreammatcher.json, with 95 % intervals over subjects.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import comfy.sample
import torch

from ..editing.concepts import SLOT
from ..editing.learning import applied, learn_concept
from ..editing.watching import Watch
from ..host.tokens import encode, tokenize_rows
from ..miniature import scenes
from ..miniature.subjects import SEEN, UNSEEN, match, subject, subject_scenes
from ..nodes.attention.dreammatcher import PalimpsestDreamMatcher
from ..nodes.inversion.ddim import PalimpsestDDIMInvert
from ..showcase.rows import output
from .concepts import BATCH, CFG, METHODS, RARE, SAMPLED, SUBJECT, Lab, from_json, given, interval, to_json

RESULTS = Path(__file__).parent / "results" / "dreammatcher.json"
STEPS = 400
ALONE = "the learned MODEL alone"
SETTINGS = {ALONE: None, "DreamMatcher": {}, "threshold 0 (soft)": {"threshold": 0.0}, "cycle 1": {"cycle": 1.0}}
NUMBERS = "seen", "unseen", "rim", "time"


def sampled(lab, model, clip, texts, seed) -> torch.Tensor:
    """Pictures [B,H,W,3] of some texts, whose words are known."""
    latents = torch.zeros(len(texts), 4, 16, 16)
    noise, empty = comfy.sample.prepare_noise(latents, seed), comfy.sample.fix_empty_latent_channels(model, latents)
    positive, negative = (encode(clip, tokenize_rows(clip, said)) for said in (texts, [""]))
    return lab.vae.decode(comfy.sample.sample(model, noise, SAMPLED, CFG, "ddim", "ddim_uniform", positive, negative,
                                              empty, seed=seed, disable_pbar=True))


def reference(lab, model, clip, number):
    """The INVERSION of the first picture that the subject was learned from."""
    shown = torch.from_numpy(scenes.render(subject_scenes(number, 1)[0]))[None]
    text = subject(number).caption(SEEN[0]).replace(SLOT, RARE)
    return output(PalimpsestDDIMInvert, model=model, source=encode(clip, tokenize_rows(clip, [text])),
                  latent={"samples": lab.vae.encode(shown)}, steps=SAMPLED)


def rim(pictures, others) -> torch.Tensor:
    """dB between the outer eighths of some pictures and of others."""
    error = (pictures - others).square().mean(-1)
    n = error.shape[-1] // 8
    error[:, n:-n, n:-n] = 0
    outer = 1 - (1 - 2 * n / error.shape[-1]) ** 2
    return -10 * (error.mean((1, 2)) / outer).log10()


def measure(lab, number, draws) -> dict:
    """{setting: {number: mean over draws}} of one subject."""
    one = subject(number)
    learned = learn_concept(lab.model, lab.clip, given(lab, number, SUBJECT), METHODS[SUBJECT](one.noun), None, STEPS,
                            BATCH, 0, watch=Watch(STEPS // 10))
    model, clip = applied(lab.model, lab.clip, learned)
    texts = [one.caption(g).replace(SLOT, RARE) for g in (*SEEN, *UNSEEN)]
    picture = reference(lab, model, clip, number)
    found = {name: [] for name in SETTINGS}
    for seed in range(11, 11 + draws):
        plain, base = None, 1.0
        for name, settings in SETTINGS.items():
            edited = model if settings is None else output(
                PalimpsestDreamMatcher, model=model, inversion=picture, words=f"{RARE}, {one.noun}", **settings)
            began = time.process_time()
            made = sampled(lab, edited, clip, texts, seed)
            seconds = time.process_time() - began
            if plain is None:
                plain, base = made, seconds
            near = match(made, one)
            found[name].append((near[:len(SEEN)].mean(), near[len(SEEN):].mean(), rim(made, plain).mean(),
                                seconds / base))
    return {name: dict(zip(NUMBERS, torch.tensor(rows).mean(0).tolist())) for name, rows in found.items()}


def table(measured) -> str:
    lines = ["| | match, seen (gain) | unseen (gain) | rim | time |", "|---|" + "---|" * 4]
    for name, row in from_json(measured).items():
        cells = []
        for part in ("seen", "unseen"):
            mean, low, high = row[f"{part} gain"]
            gain = f" ({mean:+.1f}, {low:+.1f} to {high:+.1f})" if name != ALONE else ""
            cells.append(f"{row[part][0]:.1f} dB{gain}")
        rim = f"{row['rim'][0]:.1f} dB" if name != ALONE else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {rim} | {row['time'][0]:.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        lab, rows = Lab(), []
        for number in range(args.subjects):
            rows.append(measure(lab, number, args.draws))
            print(number, rows[-1], flush=True)
    measured = {name: {n: interval([row[name][n] for row in rows]) for n in NUMBERS} | {
        f"{part} gain": interval([row[name][part] - row[ALONE][part] for row in rows]) for part in ("seen", "unseen")}
        for name in SETTINGS}
    print(table(measured))
    result = {"settings": vars(args) | {"steps": STEPS, "sampled": SAMPLED, "cfg": CFG},
              "machine": f"{platform.processor() or platform.machine()}, 1 thread", "measured": measured}
    RESULTS.write_text(json.dumps(to_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
