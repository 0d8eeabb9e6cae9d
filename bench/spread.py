"""Parts of a benchmark, measured in this process or by workers on Ray."""
from importlib import import_module


def add_arguments(parser):
    parser.add_argument("--workers", type=int, default=0, help="processes on Ray that share the work; 0: this one")
    parser.add_argument("--address", default="", help="of a Ray cluster whose workers they are")


def spread(make, settings: dict, groups: list, write, args):
    """Give every row of every part to `write`, as soon as its part is there.

    make: a class of a module's own. Made from `settings`, its `rows(*part)` measures a part.
    groups: lists of parts, which one worker measures in turn.
    """
    if not args.workers:
        made = make(**settings)
        for part in (part for group in groups for part in group):
            for row in made.rows(*part):
                write(*row)
        return
    from ..batch.engine import Engine, Options  # which needs Ray
    lost, started = [], {"make": (make.__module__, make.__name__), "settings": settings}
    Engine("palimpsest.bench.spread:Worker", started, Options(args.address, args.workers),
           args=lambda item, seat: item.job,
           done=lambda item, found: [write(*row) for row in found["rows"]],
           lost=lambda item, why: lost.append(f"{item.job}: {why}"),
           tell=lambda seat, words: print(f"worker {seat.number} {words}", flush=True)).run(groups)
    if lost:
        raise RuntimeError("\n".join(["these parts were not measured, the same command tries them again:", *lost]))


class Worker:
    def __init__(self, make, settings):
        module, name = make
        self.made = getattr(import_module(module), name)(**settings)

    def __call__(self, *part):
        return {"rows": list(self.made.rows(*part))}
