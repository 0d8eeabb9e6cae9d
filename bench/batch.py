"""A batch beside a loop over one server's /prompt, on the same rows of the main workflow.

    python tools/dev.py bench batch [--scenes 6] [--rounds 3] [--steps 10]

Every round runs the rows in the loop, by one worker and by two, in turn, so that another load on the machine meets all.
A scene has three rows, which differ in guidance. Only rows after a worker's first count: that one loads the model.
Prints rows a minute of each way, and the medians over the rounds of what they are to the loop's.
"""
import argparse
import json
import time
from statistics import median
from types import SimpleNamespace

import workflow
from canvas import to_api
from demo import titled

from ..batch.engine import Engine, Options
from ..batch.isolated import Server

CFGS = 2.0, 4.0, 7.0


def rows(scenes: int, steps: int) -> list:
    """Groups of workflows, one group a scene."""
    workflow.host_nodes()
    main = json.loads((workflow.FOLDER / f"{workflow.MAIN}.json").read_text(encoding="utf-8"))
    graph = to_api(main, workflow.object_info())

    def row(scene, cfg):
        copy = json.loads(json.dumps(graph))
        for title, inputs in {"Miniature Scene": {"seed": scene, "kind": "background"}, "DDIM Invert": {"steps": steps},
                              "Words that may change": {"value": "background"}, "Sample the edit": {"cfg": cfg},
                              "Attention Heatmap": {"words": "background"}}.items():
            copy[titled(copy, title)]["inputs"].update(inputs)
        return SimpleNamespace(number=scene, graph=copy)

    return [[SimpleNamespace(row=row(scene, cfg)) for cfg in CFGS] for scene in range(scenes)]


def rate(done: list, workers: int) -> float:
    """Rows a minute once every worker has done its first. done: (worker, time) of the rows."""
    seen = set()
    for first, (worker, begun) in enumerate(done):
        seen.add(worker)
        if len(seen) == workers:
            return 60 * (len(done) - first - 1) / (done[-1][1] - begun)
    raise RuntimeError(f"{len(seen)} of {workers} workers did a row: give more scenes")


def looped(groups) -> float:
    server, done = Server(), []
    try:
        for job in (job for group in groups for job in group):
            ended(server(job.row.graph, {}))
            done.append((0, time.perf_counter()))
    finally:
        server.close()
    return rate(done, 1)


def batched(groups, workers) -> float:
    done = []
    Engine("palimpsest.batch.worker:Worker", {}, Options(workers=workers), lambda item, seat: (item.job.row.graph, {}),
           lambda item, found: done.append((ended(found)["worker"], time.perf_counter())),
           lambda item, why: ended({"error": why, "node": "the worker"})).run(groups)
    return rate(done, workers)


def ended(found) -> dict:
    if found["error"]:
        raise RuntimeError(f"{found['node']}: {found['error']}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    groups, found = rows(args.scenes, args.steps), []
    for number in range(args.rounds):
        found.append([looped(groups), batched(groups, 1), batched(groups, 2)])
        print(f"round {number + 1}, rows a minute: loop {found[-1][0]:.1f}, one worker {found[-1][1]:.1f}, "
              f"two {found[-1][2]:.1f}", flush=True)
    for name, way in (("one worker", 1), ("two workers", 2)):
        print(f"{name}: {median(r[way] / r[0] for r in found):.2f} of the loop's rate")
