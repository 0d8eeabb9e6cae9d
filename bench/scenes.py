"""SceneBench: edits whose exact answer is known, by any inversion and any editor.

    python tools/dev.py bench scenes [--split public] [--cases 60] [--steps 50] [--cfg 4] [--inversion NAME ...]
        [--editor NAME ...] [--kind KIND ...] [--model flow] [--workers N [--address HOST:PORT]]

A case is one edit of a miniature scene: source picture, two prompts, edit mask and exact target picture. There are
eight kinds of edit, and 60 cases of each kind are 480 cases. There are four splits (splits.py). Choose settings on
public and hard-public, and show what was chosen on held-out and hard-held-out. The hard scenes show much that no
caption states.
Editors are those of the showcase, inversions the rows of bench/inversions.py. Both have their nodes' defaults unless a
row says otherwise. An editor is measured on its own inversion, which is DDIM for most, and a few on those of CROSSED
too. Some are for certain kinds of edit only. Floors, ceilings and ghosts (bench/floors.py) are rows too.
With `--model flow` the miniature flow model edits the same scenes. An editor that refuses it has no row.

Each case gives one JSON line in output/scenes/:
success: the scene reader sees what was asked for. On the hard splits the reader of details (miniature/details.py) does,
    and sees all details too.
asked, details: what was asked for alone, and the share of details (hard splits).
kept: the other attributes that the exact target shows read as before.
background PSNR and SSIM: outside the mask grown by two latent cells, and the ideal edit's.
PSNR to the exact target: in the whole picture and inside the mask.
reconstruction: at this CFG, next to the autoencoder's.
cost: network row-passes, seconds, and on a GPU peak memory.
"Of the way" is a share of the dB to the exact target, from fresh noise (0 %) to what a perfect sampler reaches (100 %).

A line that exists is not measured again. So an interrupted run continues where it stopped, and rows, kinds and cases
can be measured in any order, over several sittings. The lines' file is named after the weights and the pictures. Prints
the tables and writes bench/results/scenes/SPLIT.json, next to other rows of the same settings, with 95 % intervals and
paired differences from plain sampling. Of a held-out split it also prints the best choice for each kind of edit, chosen
on the public one. Draws one case per kind, output/scenes/sheet.png.
"""
import argparse
import hashlib
import json
import platform
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from .. import showcase
from ..metrics.drawing import sheet, tile
from ..metrics.edits import edit_numbers, edit_scores, ideal_edit
from ..metrics.pixels import psnr
from ..miniature.details import read_asked, read_details
from ..miniature.model import FLOW, load_flow_miniature, load_miniature
from ..miniature.reader import read
from ..miniature.scenes import EDIT_KINDS, visible
from ..showcase.rows import NO_INVERSION, SceneRow, as_it_is
from .floors import GHOSTS, ghosts, references
from .inversions import METHODS, Scenes, rounded
from .splits import SPLITS
from .spread import add_arguments, spread
from .summary import NOBODY, Column, best, line, of_the_way, summary, table, table_by_kind

ROOT = Path(__file__).parents[1]
RESULTS, LINES = ROOT / "bench" / "results" / "scenes", ROOT / "output" / "scenes"
WEIGHTS = ROOT / "miniature" / "miniature.safetensors", ROOT / "miniature" / "reader.safetensors"
DETAILS = (ROOT / "miniature" / "details.py",)

EDITORS = {row.name: row for row in (SceneRow("plain", as_it_is, crossed=True), *showcase.collected("scenes"))}
OWN = list(dict.fromkeys(row.on for row in EDITORS.values()))  # inversions that some editors stand on
CROSSED = {"sd": ("Negative-prompt", "Null-text", "Edit-friendly DDPM", "FlowEdit", "DDCM, one noise"),
           "flow": ("FireFlow", "RF-Solver", "Uni-Inv", "RF-Inversion", "FlowEdit", "DNAEdit")}
MODELS = {"sd": load_miniature, "flow": load_flow_miniature}
REFERENCES = "fresh noise", "another picture", *GHOSTS, "identifiable", "ideal edit"
COMPARED = "success", "asked", "details", "kept", "background_psnr", "target_psnr"
COLUMNS = (Column("cases", "cases"), Column("success", "success", "%"), Column("asked", "asked", "%"),
           Column("details", "details", "%"), Column("kept", "kept", "%"),
           Column("background_psnr", "background", " dB"), Column("target_psnr", "to the target", " dB"))
PASSES = Column("rows", "row passes")
BY_KIND = Column("success", "", "%"), Column("target_psnr", "", " dB")


def edited(scenes, inversion, name, cfg):
    """Pictures [B,H,W,3] of one editor on an INVERSION, or on None where it takes none."""
    row = EDITORS[name]
    if row.singly and len(scenes.edits) > 1:
        return torch.cat([edited(one, single(inversion, one, i), name, cfg) for i, one in enumerate(scenes.singles)])
    if inversion is None:
        return scenes.parts[2].decode(row.edit(scenes, scenes.parts[0], None)["samples"])
    prompt = row.samples(scenes) if callable(row.samples) else getattr(scenes, row.samples)
    return scenes.replay(inversion, prompt, row.cfg or cfg, edit=lambda model: row.edit(scenes, model, inversion),
                         start=row.start, anew=row.anew)


def single(inversion, one, i):
    """The INVERSION of the i-th picture of a batch. one: its Scenes."""
    assert not inversion.theta
    return replace(inversion, latents=[x[i:i + 1] for x in inversion.path], conditioning=one.source)


def editors_on(inversion, kind, chosen, model="sd") -> list:
    """Those of the chosen editors that are measured on an inversion, for a kind of edit."""
    return [name for name in chosen if kind in (EDITORS[name].kinds or EDIT_KINDS)
            and EDITORS[name].only in ("", model)
            and (EDITORS[name].on == inversion
                 or EDITORS[name].crossed and (inversion in CROSSED[model] or inversion not in OWN))]


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


@dataclass(frozen=True, eq=False)
class Known:
    """What every row of some cases is measured against.

    truth: the exact targets [B,H,W,3].
    ideal: the ideal edits [B,H,W,3].
    before, wanted: what `asked` gives.
    shared: {number: [B]} that are the same in all rows.
    details: whether success needs the details.
    """
    truth: Tensor
    ideal: Tensor
    before: list
    wanted: list
    shared: dict
    details: bool

    @classmethod
    def of(cls, scenes, details=False):
        truth, vae = torch.stack([torch.from_numpy(e.target_image) for e in scenes.edits]), scenes.parts[2]
        ideal = ideal_edit(scenes.pictures, truth, scenes.masks, vae.encode, vae.decode)
        numbers = edit_numbers(scenes.pictures, ideal, target=truth, mask=scenes.masks)
        shared = {"ceiling_psnr": psnr(scenes.round_trip, scenes.pictures),
                  **{f"ideal_{n}": numbers[n] for n in ("background_psnr", "target_psnr")}}
        return cls(truth, ideal, *asked(scenes.edits, read(scenes.round_trip)), shared, details)


def score(scenes, known, made, replayed=None) -> dict:
    """{number: [B]} of pictures."""
    success, kept = edit_scores(read(made), known.before, known.wanted)
    found = {"success": success, "kept": kept}
    if known.details:
        each = [list(row.values()) for row in read_details(made, scenes.edits)]
        asked = torch.tensor(read_asked(made, scenes.edits)).double()
        found |= {"success": asked * torch.tensor([float(all(row)) for row in each]), "asked": asked,
                  "details": torch.tensor([sum(row) / len(row) for row in each])}
    numbers = edit_numbers(scenes.pictures, made, replayed, known.truth, scenes.masks)
    names = "background_psnr", "background_ssim", "target_psnr", "target_mask_psnr", "reconstruction_psnr"
    return {**found, **{n: numbers[n] for n in names if n in numbers}, **known.shared}


def measure(scenes, known, inversion_name, editors, args):
    """(editor, numbers {name: [B]}, pictures) of each editor on one inversion."""
    inversion, replayed, spent = None, None, ()
    if inversion_name != NO_INVERSION:
        with Counter(scenes.parts[0]) as counted:
            inversion = scenes.invert(METHODS[inversion_name], args.cfg, args.steps)
        replayed, spent = scenes.replay(inversion, scenes.source, args.cfg), (counted,)
    for name in editors:
        try:
            with Counter(scenes.parts[0]) as counted:
                made = edited(scenes, inversion, name, args.cfg)
        except ValueError as refused:
            if args.model == "sd":
                raise
            print(f"{name}: {refused}", flush=True)
            continue
        yield name, {**score(scenes, known, made, replayed), **cost(len(scenes.edits), counted, *spent)}, made


def measure_references(scenes, known, first, args):
    """The same of floors, ceilings and ghosts; first: the number of the first case."""
    made = {**references(scenes, args.cfg, args.steps, first), **ghosts(scenes, known.truth),
            "ideal edit": known.ideal}
    for name, pictures in made.items():
        yield name, score(scenes, known, pictures), pictures


def cost(cases, *counters) -> dict:
    """{number: [cases]}: what some counters saw, a case."""
    numbers = {"rows": sum(c.rows for c in counters) / cases, "seconds": sum(c.seconds for c in counters) / cases,
               "peak_mb": counters[0].peak}
    return {n: torch.full((cases,), float(v)) for n, v in numbers.items()}


class Measurer:
    """Measures parts of SceneBench: editors on one inversion, over cases of one kind from `start` on."""

    def __init__(self, split, cases, batch, steps, cfg, model="sd"):
        self.split = SPLITS[split]
        self.args = argparse.Namespace(cases=cases, batch=batch, steps=steps, cfg=cfg, model=model)
        self.models, self.prepared = MODELS[model](), (None, None, None)
        comfy.utils.set_progress_bar_enabled(False)

    def rows(self, kind, start, inversion, editors):
        """Of each editor what `write` takes."""
        numbers = numbered(self.split, start, self.args)
        with torch.inference_mode():
            if self.prepared[0] != (kind, start):
                scenes = Scenes(self.models, self.split.edits(kind, numbers))
                self.prepared = (kind, start), scenes, Known.of(scenes, self.split.details)
            _, scenes, known = self.prepared
            made = (measure_references(scenes, known, numbers[0], self.args) if inversion == NOBODY else
                    measure(scenes, known, inversion, editors, self.args))
            for editor, found, pictures in made:
                yield (kind, [f"{kind}-{n}" for n in numbers], inversion, editor,
                       {n: rounded(v.double()) for n, v in found.items()}, pictures[0].cpu() if start == 0 else None)


def numbered(split, start, args) -> range:
    """The numbers of a part's cases."""
    return range(split.first + start, split.first + min(start + args.batch, args.cases))


def run(args, lines: Path):
    """Measure the missing cases and append their lines."""
    held, split, groups = set(stored(lines)), SPLITS[args.split], []
    for start in range(0, args.cases, args.batch):
        for kind in args.kind:
            names = [f"{kind}-{n}" for n in numbered(split, start, args)]
            chosen = {NOBODY: REFERENCES} | {i: editors_on(i, kind, args.editor, args.model) for i in args.inversion}
            missing = {i: [e for e in editors if not {(n, i, e) for n in names} <= held]
                       for i, editors in chosen.items()}
            groups.append([(kind, start, i, editors) for i, editors in missing.items() if editors])
    settings = {name: getattr(args, name) for name in ("split", "cases", "batch", "steps", "cfg", "model")}
    if any(groups):
        spread(Measurer, settings, [g for g in groups if g], lambda *row: write(lines, held, *row), args)


def write(lines: Path, held, kind, names, inversion, editor, columns, picture):
    """Append an editor's lines of some cases that are not held, and keep its first picture."""
    with lines.open("a", encoding="utf-8") as file:
        for i, name in enumerate(names):
            if (name, inversion, editor) not in held:
                file.write(json.dumps({"case": name, "kind": kind, "inversion": inversion, "editor": editor,
                                       **{n: v[i] for n, v in columns.items()}}) + "\n")
    if picture is not None:
        keep(picture, lines.with_suffix("") / f"{kind} {inversion} {editor}.png")
    print(kind, names[0], inversion, editor, flush=True)


def keep(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().byte().numpy()).save(path)


def stored(lines: Path, about=()) -> dict:
    """{(case, inversion, editor): line} of the lines with these (name, value), None where a line has no such name."""
    rows = map(json.loads, lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else ()
    return {(r["case"], r["inversion"], r["editor"]): r for r in rows
            if all(r.get(name) == value for name, value in about)}


@cache
def version(split, model="sd") -> str:
    """A short name of the miniature's and its reader's weights, and of a split's pictures and what is read of them."""
    read_with = WEIGHTS + DETAILS * SPLITS[split].details + (FLOW,) * (model == "flow")
    pictures = [edit.target_image.tobytes() for kind in EDIT_KINDS for edit in SPLITS[split].edits(kind, range(2))]
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in read_with), *pictures])).hexdigest()[:8]


def named(split, model="sd") -> str:
    """What the files of results are called by."""
    return split if model == "sd" else f"{model}-{split}"


def results(split, folder=None, model="sd") -> dict:
    path = (folder or RESULTS) / f"{named(split, model)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def ordered(found) -> dict:
    """Rows in the order of inversions and editors."""
    inversions = [NOBODY, "DDIM", *CROSSED["sd"], *METHODS, NO_INVERSION]
    order = {f"{i}, {e}": None for i in dict.fromkeys(inversions) for e in (REFERENCES if i == NOBODY else EDITORS)}
    return {name: found[name] for name in order if name in found}


def tables(result) -> str:
    """Of one split's results. tools/tables.py writes them into docs/benchmarks.md."""
    found = result["measured"]
    far = ("of the way", lambda name: of_the_way(found, name)), ("row passes", lambda name: PASSES.cell(found[name]))
    return f"{table(found, COLUMNS, far)}\n\n{table_by_kind(found, EDIT_KINDS, BY_KIND)}"


def editor_of(name: str) -> str:
    """The editor of a row "inversion, editor", either of which may have a comma. Empty where no editor is."""
    return next((editor for editor in EDITORS if name.endswith(f", {editor}")), "")


def told(name: str) -> bool:
    editor = editor_of(name)
    return bool(editor) and EDITORS[editor].told


def best_table(public, held_out, linked=str) -> str:
    """The best choice for each kind of edit, chosen on the public split, and plain sampling beside it.

    linked(row): its name in the table.
    """
    def cells(name, row):
        return [linked(name) if name else "", *(c.cell(row) for c in BY_KIND)]

    named = "success", "to the target"
    lines = [line("kind of edit", "with whatever helps", *named, "without a MASK or another picture", *named,
                  *(f"plain sampling: {title}" for title in named))]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    found = best(public, held_out, EDIT_KINDS, told)
    for (kind, *first), (_, *second) in zip(found[::2], found[1::2]):
        plain = held_out.get("DDIM, plain", {"kinds": {}})["kinds"].get(kind, {})
        lines.append(line(kind, *cells(*first), *cells(*second), *(c.cell(plain) for c in BY_KIND)))
    return "\n".join(lines)


def draw(args, pictures: Path):
    """Draw one case per kind: source, exact target, and every method's result."""
    split, rows = SPLITS[args.split], []
    for kind in args.kind:
        edit = split.edit(split.first, kind)
        made = [tile(torch.from_numpy(getattr(edit, f"{n}_image")), f"{kind}: {n}") for n in ("source", "target")]
        for inversion in (NOBODY, *args.inversion):
            chosen = REFERENCES[:1] if inversion == NOBODY else editors_on(inversion, kind, args.editor, args.model)
            for editor in chosen:
                path = pictures / f"{kind} {inversion} {editor}.png"
                if not path.exists():  # measured on another machine
                    continue
                with Image.open(path) as image:
                    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                    made.append(tile(pixels.view(image.height, image.width, 3) / 255,
                                     editor if inversion in ("DDIM", NOBODY) else f"{inversion}, {editor}"))
        rows.append(made)
    keep(sheet(rows)[0], LINES / "sheet.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="public")
    parser.add_argument("--cases", type=int, default=60, help="of each kind")
    parser.add_argument("--kind", nargs="+", choices=EDIT_KINDS, default=list(EDIT_KINDS))
    parser.add_argument("--inversion", nargs="+", choices=[*METHODS, NO_INVERSION],
                        help="those that editors stand on, if none is named")
    parser.add_argument("--editor", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument("--model", choices=MODELS, default="sd")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=15, help="cases that are edited together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    add_arguments(parser)
    args = parser.parse_args()
    args.inversion = args.inversion or list(dict.fromkeys([*OWN, *CROSSED[args.model]]))
    stem, measured = named(args.split, args.model), version(args.split, args.model)
    lines = LINES / f"{stem} {args.steps} steps CFG {args.cfg:g} {measured}.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    run(args, lines)
    settings = {"split": args.split, "steps": args.steps, "cfg": args.cfg, "version": measured}
    last = SPLITS[args.split].first + args.cases
    rows = [r for r in stored(lines).values() if int(r["case"].rpartition("-")[2]) < last]
    before = results(args.split, args.out, args.model)
    found = before["measured"] if before.get("settings") == settings else {}
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result = {"settings": settings, "machine": machine,
              "measured": ordered({**found, **summary(rows, EDIT_KINDS, COMPARED)})}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(args, lines.with_suffix(""))
    print(tables(result))
    public = results(args.split.replace("held-out", "public"), args.out, args.model)
    if public and "held-out" in args.split:
        print("", best_table(public["measured"], result["measured"]), sep="\n")
