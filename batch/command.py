"""Run one workflow over the rows of a table, on every GPU or core of this machine, or on a Ray cluster.

    python tools/dev.py batch workflow_api.json TABLE --out DIR [--set "Node title.input=column" ...]
        [--grid "Node title.input=value,value" ...] [--workers N] [--address HOST:PORT] [--dry-run] [--retry-failed]

WORKFLOW is what ComfyUI's File > Export (API) saves. TABLE is a folder of pictures, or a .csv, .parquet or .tar file
(WebDataset). A column that is named as an input, `Prompt Edit.target`, fills it; --set names others.
Pictures and a Parquet file with every row's numbers go to a folder of DIR, which is named after the workflow and all
that decides its results. The same command goes on where a run was broken off. docs/batch.md tells more.
"""
import argparse
import signal
import sys
from collections import Counter
from pathlib import Path

from filelock import FileLock, Timeout

from environment import host_version
from pack import ROOT, find_host
from workflow import object_info

from .binding import bind, fixed_pictures, read_workflow, title
from .engine import Engine, NoWorkers, Options
from .output import Store
from .plan import plan, shapes, whole
from .report import Progress, forecast
from .table import TableError, read_table, with_grid
from .worker import Worker, failure

IN_PROCESS, ISOLATED = "palimpsest.batch.worker:Worker", "palimpsest.batch.isolated:Server"


def pair(text: str) -> tuple[str, str]:
    place, equals, value = text.partition("=")
    if not equals or "." not in place:
        raise argparse.ArgumentTypeError(f'{text!r}: write "Node title.input=…"')
    return place.strip(), value.strip()


def arguments(given=None):
    parser = argparse.ArgumentParser(prog="dev.py batch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", type=pair, action="append", default=[], metavar="NODE.INPUT=COLUMN")
    parser.add_argument("--grid", type=pair, action="append", default=[], metavar="NODE.INPUT=VALUE,VALUE")
    parser.add_argument("--group-by", default="", metavar="COLUMN",
                        help="rows of equal value run on one worker in turn (rows of one picture do so anyway)")
    parser.add_argument("--picture", action="append", default=[], metavar="TITLE",
                        help="nodes whose pictures are kept; without it all that save some")
    parser.add_argument("--format", choices=("png", "webp"), default="png")
    parser.add_argument("--workers", default="auto", help="auto: one a GPU, or one a core where there is none")
    parser.add_argument("--gpus-per-worker", type=float, default=1.0)
    parser.add_argument("--address", default="", help="of a Ray cluster; without it Ray runs on this machine alone")
    parser.add_argument("--recycle-gb", type=float, default=4.0,
                        help="a worker that grew by so much is replaced")
    parser.add_argument("--pack", type=Path, action="append", default=[], help="a further pack of custom nodes")
    parser.add_argument("--isolate", action="store_true", help="each worker starts a ComfyUI server with all its packs")
    parser.add_argument("--retry-failed", action="store_true", help="do the rows that failed again, and what is left")
    parser.add_argument("--dry-run", action="store_true", help="check the rows, measure two of them, print the plan")
    args = parser.parse_args(given)
    twice = [place for place, count in Counter(place for place, _ in args.set + args.grid).items() if count > 1]
    if twice:
        parser.error(f"{twice[0]!r} is given twice: one --set, or one --grid with all its values")
    if args.workers != "auto" and (not args.workers.isdigit() or args.workers == "0"):
        parser.error(f"--workers is {args.workers!r}: give auto, or a number from 1 up")
    return args


def versions() -> dict:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {"ComfyUI": host_version(find_host()), "palimpsest": text.partition('\nversion = "')[2].partition('"')[0]}


class Batch:
    """What the arguments ask for, checked against the host."""

    def __init__(self, args):
        self.args = args
        graph = read_workflow(args.workflow)
        grid = {place: [value.strip() for value in values.split(",")] for place, values in args.grid}
        if args.table.is_dir() and args.table.resolve() in args.out.resolve().parents:
            raise TableError(f"--out {args.out} lies in the table's folder, where its pictures would be rows: name a "
                             "folder beside it")
        rows = with_grid(read_table(args.table), grid)
        columns = list(dict.fromkeys(name for row in rows for name in row.values))
        host = Worker([] if args.isolate else [p.resolve() for p in args.pack])
        try:
            self._read(graph, rows, columns, host)
        finally:
            host.close()

    def _read(self, graph, rows, columns, host):
        args = self.args
        info = object_info()
        unknown = sorted({node["class_type"] for node in graph.values()} - info.keys())
        if unknown and not args.isolate:
            raise TableError(f"ComfyUI and this pack have no node {', '.join(unknown)}: name its pack with --pack "
                             "FOLDER, or use --isolate, which starts a ComfyUI with all its packs")
        known = {title(graph, node): None for node in graph}
        strange = [named for named in args.picture if named not in known]
        if strange:
            raise TableError(f"--picture names {strange[0]!r}, and no node of the workflow has that title: it has "
                             + ", ".join(map(repr, known)))
        bindings = bind(graph, info, columns, dict(args.set) | {place: place for place, _ in args.grid})
        folder = args.table if args.table.is_dir() else args.table.parent
        about = versions() | {"pictures": args.picture, "format": args.format}
        self.plan = plan(graph, bindings, rows, about, folder.resolve(), args.group_by,
                         [place for place, _ in args.grid])
        for job in () if unknown else shapes(self.plan):
            refused, _ = host.check(self.plan.graph_of(job), {n: p.read() for n, p in job.pictures.items()})
            if refused:
                fixed = [place for node, place in fixed_pictures(graph, info, bindings) if f"node {node}:" in refused]
                hint = (f": workers have the table's pictures alone, so give it --set \"{fixed[0]}=COLUMN\", or for "
                        f"one file --grid \"{fixed[0]}=FILE\"") if fixed else ""
                raise TableError(f"row {job.row.number}: {refused}{hint}")

    def engine(self, done, lost, tell=lambda seat, words: None) -> Engine:
        a = self.args
        settings = {"packs": [str(p.resolve()) for p in a.pack], "pictures": a.picture, "form": a.format}
        workers = 0 if a.workers == "auto" else int(a.workers)
        options = Options(a.address, workers, a.gpus_per_worker, a.recycle_gb * 1e9)
        return Engine(ISOLATED if a.isolate else IN_PROCESS, settings, options, self.send, done, lost, tell)

    def send(self, item, seat) -> tuple:
        """A row's workflow, and the pictures that its worker does not have from the row before."""
        pictures = {name: whole(p) for name, p in item.job.pictures.items() if name not in seat.sent}
        seat.sent = {*item.job.pictures}
        return self.plan.graph_of(item.job), pictures

    def forecast(self) -> str:
        """What the run will take, from a few rows on one worker. Nothing is kept."""
        groups = self.plan.groups(job for job in self.plan.jobs if not job.broken)
        if not groups:
            raise TableError("no row can be done: " + self.plan.jobs[0].broken)
        sample = [groups[0][0], *groups[1][:2]] if len(groups) > 1 else groups[0][:2]  # the first loads the model
        found = []
        engine = self.engine(lambda item, what: found.append(what),
                             lambda item, why: found.append(failure(f"row {item.job.row.number}: {why}", "", "")))
        engine.run([sample])
        for what in found:
            if what["error"]:
                raise TableError(f"{what['node']}: {what['error']}")
        found = found[1:] if len(groups) > 1 else found
        return forecast(found, len(groups), sum(map(len, groups)), engine.workers)

    def run(self) -> int:
        """How many rows failed. One process at a time writes to a run's folder."""
        folder = self.args.out / self.plan.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "lock", timeout=0):
                return self._run(Store(folder, self.plan))
        except Timeout:
            raise BlockingIOError(f"another process does these rows and writes to {folder}: wait until it ends, or "
                                  "give this one another --out") from None

    def _run(self, store) -> int:
        todo = [job for job in self.plan.jobs
                if job.key not in store.held or self.args.retry_failed and store.held[job.key]]
        progress = Progress(len(todo), len(self.plan.jobs) - len(todo))
        progress.say(f"{len(self.plan.jobs)} rows, {progress.before} done before; results go to {store.folder}")

        def done(item, found):
            store.add(item.job, found, item.tries)
            progress.row(found)

        def lost(item, why):
            done(item, failure(f"row {item.job.row.number}: {why}", "the worker", "died" if item.losses else "failed"))

        try:
            with store:
                for job in (job for job in todo if job.broken):
                    found = failure(job.broken, "the table", "unreadable picture")
                    store.add(job, found, 0)
                    progress.row(found)
                groups = self.plan.groups(job for job in todo if not job.broken)
                if groups:
                    self.engine(done, lost, progress.worker).run(groups)
        finally:
            progress.say(progress.line())
        return sum(store.held[job.key] for job in self.plan.jobs)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = arguments()
    try:
        batch = Batch(args)
        if args.dry_run:
            print(batch.forecast())
            return 0
        failed = batch.run()
    except (TableError, NoWorkers, OSError) as error:
        print(f"palimpsest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npalimpsest: interrupted: the same command goes on where it was", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} {'row' if failed == 1 else 'rows'} failed: `error` says why, --retry-failed does them again")
    return 0
