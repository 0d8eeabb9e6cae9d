"""SceneBench: edits whose exact answer is known, by any inversion and any editor.

    python tools/dev.py bench scenes [--split public] [--cases 30] [--steps 50] [--cfg 4] [--inversion NAME ...]
        [--editor NAME ...]

A case is one held-out edit of a miniature scene: source picture, two prompts, edit mask and exact target picture. There
are eight kinds of edit, and 30 cases of each kind are 240 cases. Use the public split to choose settings and the
held-out split for claims.
Inversions are the rows of bench/inversions.py. Editors are those of the showcase. Both have their nodes' defaults
unless a row says otherwise. Floors and ceilings (bench/floors.py) are rows too.

Each case gives one JSON line in output/scenes/:
success: the scene reader sees what was asked for.
kept: the other attributes that the exact target shows read as before.
background PSNR and SSIM: outside the mask grown by two latent cells, and the ideal edit's.
PSNR to the exact target: in the whole picture and inside the mask.
reconstruction: at this CFG, next to the autoencoder's.
cost: network row-passes, seconds, and on a GPU peak memory.
"Of the way" is a share of the dB to the exact target, from fresh noise (0 %) to what a perfect sampler reaches (100 %).

A line that exists is not measured again, so an interrupted run continues where it stopped. Prints a table and writes it
to bench/results/scenes.json, next to other rows with the same settings, with paired bootstrap intervals against the
first editor. Also prints the best choice for each kind of edit, and draws a sheet with one case per kind,
output/scenes/sheet.png.
"""
import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .. import showcase
from ..metrics.drawing import sheet, tile
from ..metrics.edits import edit_numbers, edit_scores, ideal_edit
from ..metrics.pixels import psnr
from ..miniature.model import load_miniature
from ..miniature.reader import read
from ..miniature.scenes import EDIT_KINDS, held_out_edit, visible
from ..showcase.rows import SceneRow
from .floors import references
from .inversions import METHODS, Scenes, rounded
from .stats import paired_bootstrap

SPLITS = {"public": 0, "held-out": 10_000}  # number of the first held-out edit
ROOT = Path(__file__).parents[1]
SUCCEEDS = 0.8  # a method needs this share of successes to be the choice for a kind of edit
RESULTS, LINES = ROOT / "bench" / "results" / "scenes.json", ROOT / "output" / "scenes"


def as_it_is(scenes, model, inversion):
    return model


EDITORS = {row.name: row for row in (SceneRow("plain", as_it_is), *showcase.collected("scenes"))}
COMPARED = "success", "background_psnr", "target_psnr"
NOBODY = "no editor"  # of the rows that are floors and ceilings
REFERENCES = "fresh noise", "another picture", "identifiable", "ideal edit"


def edited(scenes, inversion, name, cfg):
    """Pictures [B,H,W,3] of one editor on an INVERSION."""
    row = EDITORS[name]
    return scenes.replay(inversion, getattr(scenes, row.samples), cfg,
                         edit=lambda model: row.edit(scenes, model, inversion))


class Counter:
    """Rows that go through a MODEL's network, its time, and on a GPU its peak memory. A backward pass counts twice."""

    def __init__(self, model):
        self.network = model.model.diffusion_model

    def __enter__(self):
        self.rows, self.began = 0, time.perf_counter()
        self.hook = self.network.register_forward_hook(self._count)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def _count(self, network, args, out):
        self.rows += len(args[0])
        if out.requires_grad:
            out.register_hook(lambda grad: self._add(2 * len(args[0])))

    def _add(self, rows):
        self.rows += rows

    def __exit__(self, *error):
        self.hook.remove()
        self.seconds = time.perf_counter() - self.began
        self.peak = torch.cuda.max_memory_allocated() / 2 ** 20 if torch.cuda.is_available() else float("nan")


def asked(edits, seen) -> tuple:
    """(before, wanted), each attribute -> name.

    before: what the reader saw in each source, for attributes that its exact target shows too.
    wanted: what the edit should change.
    """
    before = [{n: v for n, v in s.items() if n in visible(e.target)} for e, s in zip(edits, seen)]
    return before, [{n: v for n, v in visible(e.target).items() if visible(e.source).get(n) != v} for e in edits]


def measure(scenes, inversion, spent, editors, args) -> dict:
    """{editor: (numbers {name: [B]}, pictures)} of the cases in one INVERSION."""
    replayed, known, found = scenes.replay(inversion, scenes.source, args.cfg), Known.of(scenes), {}
    for name in editors:
        with Counter(scenes.parts[0]) as counted:
            made = edited(scenes, inversion, name, args.cfg)
        found[name] = {**score(scenes, known, made, replayed), **cost(len(scenes.edits), counted, spent)}, made
    return found


def measure_references(scenes, first, args) -> dict:
    """The same of floors and ceilings; first: the number of the first case."""
    known = Known.of(scenes)
    made = {**references(scenes, args.cfg, args.steps, first), "ideal edit": known.ideal}
    return {name: (score(scenes, known, pictures), pictures) for name, pictures in made.items()}


@dataclass(frozen=True, eq=False)
class Known:
    """What every row of some cases is measured against.

    truth: the exact targets [B,H,W,3].
    ideal: the ideal edits [B,H,W,3].
    before, wanted: what `asked` gives.
    shared: {number: [B]} that are the same in all rows.
    """
    truth: Tensor
    ideal: Tensor
    before: list
    wanted: list
    shared: dict

    @classmethod
    def of(cls, scenes):
        truth, vae = torch.stack([torch.from_numpy(e.target_image) for e in scenes.edits]), scenes.parts[2]
        ideal = ideal_edit(scenes.pictures, truth, scenes.masks, vae.encode, vae.decode)
        numbers = edit_numbers(scenes.pictures, ideal, target=truth, mask=scenes.masks)
        shared = {"ceiling_psnr": psnr(scenes.round_trip, scenes.pictures),
                  **{f"ideal_{n}": numbers[n] for n in ("background_psnr", "target_psnr")}}
        return cls(truth, ideal, *asked(scenes.edits, read(scenes.round_trip)), shared)


def score(scenes, known, made, replayed=None) -> dict:
    """{number: [B]} of pictures."""
    success, kept = edit_scores(read(made), known.before, known.wanted)
    numbers = edit_numbers(scenes.pictures, made, replayed, known.truth, scenes.masks)
    names = "background_psnr", "background_ssim", "target_psnr", "target_mask_psnr", "reconstruction_psnr"
    return {"success": success, "kept": kept, **{n: numbers[n] for n in names if n in numbers}, **known.shared}


def cost(cases, *counters) -> dict:
    """{number: [cases]}: what some counters saw, a case."""
    numbers = {"rows": sum(c.rows for c in counters) / cases, "seconds": sum(c.seconds for c in counters) / cases,
               "peak_mb": counters[0].peak}
    return {n: torch.full((cases,), float(v)) for n, v in numbers.items()}


def run(args, lines: Path):
    """Measure the missing cases and append their lines."""
    held, first = set(stored(lines)), SPLITS[args.split]
    parts = load_miniature()
    for kind in args.kind:
        for start in range(0, args.cases, args.batch):
            numbers = range(first + start, first + min(start + args.batch, args.cases))
            names = [f"{kind}-{n}" for n in numbers]
            missing = {i: [e for e in args.editor if not {(n, i, e) for n in names} <= held] for i in args.inversion}
            known = {(n, NOBODY, r) for n in names for r in REFERENCES} <= held
            if known and not any(missing.values()):
                continue
            scenes = Scenes(parts, [held_out_edit(n, kind) for n in numbers])
            if not known:
                made = measure_references(scenes, numbers[0], args)
                write(lines, held, kind, names, NOBODY, made, start == 0)
            for inversion_name, editors in missing.items():
                if not editors:
                    continue
                with Counter(parts[0]) as spent:
                    inversion = scenes.invert(METHODS[inversion_name], args.cfg, args.steps)
                made = measure(scenes, inversion, spent, editors, args)
                write(lines, held, kind, names, inversion_name, made, start == 0)


def write(lines: Path, held, kind, names, inversion, made, show):
    """Append the lines of some cases that are not held; show: whether their first pictures are kept."""
    for editor, (numbers, pictures) in made.items():
        columns = {n: rounded(v.double()) for n, v in numbers.items()}
        with lines.open("a", encoding="utf-8") as file:
            for i, name in enumerate(names):
                if (name, inversion, editor) not in held:
                    file.write(json.dumps({"case": name, "kind": kind, "inversion": inversion, "editor": editor,
                                           **{n: v[i] for n, v in columns.items()}}) + "\n")
        if show:
            keep(pictures[0], lines.with_suffix("") / f"{kind} {inversion} {editor}.png")
        print(kind, names[0], inversion, editor, flush=True)


def keep(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().byte().numpy()).save(path)


def stored(lines: Path) -> dict:
    """{(case, inversion, editor): line}."""
    rows = map(json.loads, lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else ()
    return {(r["case"], r["inversion"], r["editor"]): r for r in rows}


def mean(rows, name):
    values = [r[name] for r in rows if r.get(name) is not None]
    return sum(values) / len(values) if values else None


def summary(rows, args) -> dict:
    """{inversion + editor: means over all cases and per kind, and paired differences from the first editor on the
    same inversion}."""
    found = {}
    names = [n for n in rows[-1] if n not in ("case", "kind", "inversion", "editor")]
    for inversion, editors in [(NOBODY, REFERENCES), *((i, args.editor) for i in args.inversion)]:
        first = {r["case"]: r for r in rows if (r["inversion"], r["editor"]) == (inversion, editors[0])}
        for editor in editors:
            mine = [r for r in rows if (r["inversion"], r["editor"]) == (inversion, editor)]
            entry = {"cases": len(mine), **{n: mean(mine, n) for n in names},
                     "kinds": {k: {n: mean([r for r in mine if r["kind"] == k], n) for n in COMPARED}
                               for k in args.kind}}
            for n in COMPARED if editor != editors[0] and inversion != NOBODY else ():
                pairs = [(r[n], first[r["case"]][n]) for r in mine if None not in (r[n], first[r["case"]][n])]
                entry[f"{n}, over {args.editor[0]}"] = paired_bootstrap(*torch.tensor(pairs).double().T,
                                                                        torch.Generator().manual_seed(0))
            found[f"{inversion}, {editor}"] = entry
    return found


def measured(path, settings) -> dict:
    """The stored rows, if they have these settings."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return before["measured"] if before.get("settings") == settings else {}


def table(found, kinds) -> str:
    lines = ["| | success | kept | background | to the target | of the way | row passes | "
             + " | ".join(kinds) + " |", "|---|" + "---|" * (6 + len(kinds))]
    for name, r in found.items():
        each = " | ".join(f"{r['kinds'][k]['success']:.0%}" for k in kinds)
        rows = "" if r["rows"] is None else f"{r['rows']:.0f}"
        lines.append(f"| {name} | {r['success']:.0%} | {r['kept']:.1%} | {r['background_psnr']:.1f} dB | "
                     f"{r['target_psnr']:.1f} dB | {of_the_way(found, name, kinds):.0%} | {rows} | {each} |")
    return "\n".join([*lines, "", *bounds(found, kinds)])


def of_the_way(found, name, kinds) -> float:
    """The share of the way from fresh noise to the perfect sampler, of the mean dB to the exact target."""
    low, high, row = (sum(found[n]["kinds"][k]["target_psnr"] for k in kinds)
                      for n in (f"{NOBODY}, fresh noise", f"{NOBODY}, identifiable", name))
    return (row - low) / (high - low)


def bounds(found, kinds) -> list:
    """The floors and ceilings of each kind of edit, dB to the exact target."""
    rows = [f"| {end} | " + " | ".join(f"{found[f'{NOBODY}, {end}']['kinds'][k]['target_psnr']:.1f} dB" for k in kinds)
            + " |" for end in REFERENCES]
    return ["| to the target | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds), *rows]


def best(found, kinds) -> str:
    """For each kind of edit, the row nearest to the exact target among those that succeed in SUCCEEDS of the cases.

    The same once more without the rows that get the true mask.
    """
    lines = ["| kind | nearest to the exact target | success | to the target | without a mask given | success | to the "
             "target |",
             "|---|" + "---|" * 6]
    for kind in kinds:
        cells = []
        made = [name for name in found if not name.startswith(NOBODY)]
        for rows in (made, [name for name in made if "true mask" not in name]):
            each = {name: found[name]["kinds"][kind] for name in rows}
            good = {name: r for name, r in each.items() if r["success"] >= SUCCEEDS}
            name = max(good, key=lambda n: good[n]["target_psnr"], default=None)
            cells += [name, f"{good[name]['success']:.0%}", f"{good[name]['target_psnr']:.1f} dB"] if good else [""] * 3
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(args, pictures: Path):
    """Draw one case per kind: source, exact target, and every method's result."""
    rows = []
    for kind in args.kind:
        edit = held_out_edit(SPLITS[args.split], kind)
        made = [tile(torch.from_numpy(getattr(edit, f"{n}_image")), f"{kind}: {n}") for n in ("source", "target")]
        for inversion, editors in [(NOBODY, REFERENCES[:1]), *((i, args.editor) for i in args.inversion)]:
            for editor in editors:
                with Image.open(pictures / f"{kind} {inversion} {editor}.png") as image:
                    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                    made.append(tile(pixels.view(image.height, image.width, 3) / 255,
                                     editor if len(args.inversion) == 1 else f"{inversion}, {editor}"))
        rows.append(made)
    keep(sheet(rows)[0], LINES / "sheet.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="public")
    parser.add_argument("--cases", type=int, default=30, help="of each kind")
    parser.add_argument("--kind", nargs="+", choices=EDIT_KINDS, default=list(EDIT_KINDS))
    parser.add_argument("--inversion", nargs="+", choices=METHODS, default=["DDIM"])
    parser.add_argument("--editor", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=15, help="cases that are edited together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = LINES / f"{args.split} {args.steps} steps CFG {args.cfg:g}.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        run(args, lines)
    cases = {f"{k}-{SPLITS[args.split] + n}" for k in args.kind for n in range(args.cases)}
    rows = [r for (case, inversion, editor), r in stored(lines).items()
            if case in cases and (inversion == NOBODY or inversion in args.inversion and editor in args.editor)]
    settings = {n: v for n, v in vars(args).items() if n not in ("out", "inversion", "editor", "batch")}
    now = summary(rows, args)
    found = {**{name: r for name, r in now.items() if name.startswith(NOBODY)}, **measured(args.out, settings), **now}
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result = {"settings": settings, "machine": machine, "measured": found}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(args, lines.with_suffix(""))
    print(table(found, args.kind), best(found, args.kind), sep="\n\n")
