"""A batch on real workers: its driver is killed, then one of its workers, and two of its rows fail."""
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import psutil
import pytest

pytest.importorskip("ray", reason="the extra `batch` is not installed")
import pyarrow.parquet  # noqa: E402
from palimpsest.batch.worker import FOLDERS, Worker  # noqa: E402
from palimpsest.tests.batch.graphs import GRAPH  # noqa: E402

from pack import ROOT  # noqa: E402

FAULTS = ROOT / "tests" / "batch" / "faults.py"
WRONG = {(3, 4): "raise", (5, 3): "exit"}
ROWS = [{"Scene.seed": seed, "Sample.cfg": cfg, "Fault.what": WRONG.get((seed, cfg), "nothing")}
        for seed in range(10) for cfg in range(2, 6)]


class Run:
    """The command as a user starts it."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        (folder / "graph.json").write_text(json.dumps(GRAPH))
        lines = [ROWS[0], *(row.values() for row in ROWS)]
        (folder / "rows.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))

    def start(self):
        command = [sys.executable, ROOT / "tools" / "pack.py", "palimpsest.batch.command", self.folder / "graph.json",
                   self.folder / "rows.csv", "--out", self.folder / "out", "--workers", "2", "--group-by", "Scene.seed",
                   "--pack", FAULTS]
        with open(self.log, "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                    env=os.environ | {"OMP_NUM_THREADS": "1"})

    def done(self) -> list:
        """The journal's lines so far."""
        return [json.loads(line) for path in (self.folder / "out").glob("*/journal.jsonl")
                for line in path.read_text().splitlines()]

    def wait(self, process, rows):
        while len(self.done()) < rows:
            assert process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return self.done()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """first: what the driver had written when it was killed. rows: at the end. killed: the worker's process."""
    run = Run(tmp_path_factory.mktemp("batch"))
    process = run.start()
    try:
        run.wait(process, 6)
        workers = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.wait()
        first = run.done()
        process = run.start()
        killed = run.wait(process, len(first) + 8)[-1]["worker"]
        os.kill(killed, signal.SIGKILL)
        assert process.wait() == 0, run.log.read_text()
    finally:
        process.kill()
    folder, = (run.folder / "out").iterdir()
    rows = pyarrow.parquet.read_table(folder / "parts").to_pylist()
    return SimpleNamespace(first=first, rows=rows, killed=killed, folder=folder, said=run.log.read_text(),
                           workers=workers, table={r["row"]: ROWS[r["row"] - 1] for r in rows})


def test_every_row_is_done_once_though_driver_and_worker_were_killed(ran):
    assert sorted(r["row"] for r in ran.rows) == list(range(1, 41)) and len({r["key"] for r in ran.rows}) == 40
    worked = Counter(r["worker"] for r in ran.rows)
    assert len(ran.first) >= 6 and ran.killed in worked
    later = [r for r in ran.rows if r["key"] not in {line["key"] for line in ran.first}]
    assert {r["worker"] for r in ran.first}.isdisjoint(r["worker"] for r in later), "no row of the first run again"
    assert {(r["key"], r["seconds"]) for r in ran.first} <= {(r["key"], r["seconds"]) for r in ran.rows}
    assert f"40 rows, {len(ran.first)} done before" in ran.said and "was killed" in ran.said
    assert not [pid for pid in ran.workers if psutil.pid_exists(pid)], "the first driver's workers went with it"


def test_failures_are_rows_with_node_error_and_remedy(ran):
    failed = {ran.table[r["row"]]["Fault.what"]: r for r in ran.rows if r["error"]}
    assert len(failed) == 2 == sum(bool(r["error"]) for r in ran.rows)
    assert (failed["raise"]["node"], failed["raise"]["exception"]) == ("Fault", "ValueError")
    assert failed["raise"]["error"] == "the word zebra stands in no prompt: choose one that does"
    assert failed["exit"]["error"].startswith(f"row {failed['exit']['row']}: it ended its worker 2 times")
    assert failed["exit"]["attempts"] == 2 and "2 rows failed" in ran.said


def test_a_picture_is_inverted_once_by_the_worker_that_has_its_rows(ran):
    shared = Counter((r["group"], r["worker"]) for r in ran.rows if not r["error"])
    inverted = Counter((r["group"], r["worker"]) for r in ran.rows if r["inverted"])
    whole = [pair for pair, rows in shared.items() if rows == 4]
    assert len(whole) >= 5 and all(inverted[pair] == 1 for pair in whole)
    by_kind = {r["inverted"]: r["evaluations"] for r in ran.rows if not r["error"]}
    assert by_kind == {True: 6, False: 4}


def test_pictures_and_numbers_are_those_of_a_process_alone(ran, monkeypatch):
    for kind in FOLDERS:  # which a Worker sets for its process
        name = f"{kind}_directory"
        monkeypatch.setattr(folder_paths, name, getattr(folder_paths, name))
    worker = Worker([FAULTS])
    fine = [r for r in ran.rows if not r["error"]]
    for row in fine[3], fine[20]:
        graph = json.loads(json.dumps(GRAPH))
        graph["scene"]["inputs"]["seed"] = ran.table[row["row"]]["Scene.seed"]
        graph["sample"]["inputs"]["cfg"] = float(ran.table[row["row"]]["Sample.cfg"])
        found = worker(graph, {})
        picture, = row["pictures"]
        assert found["pictures"] == {"Save": [Path(ran.folder, picture).read_bytes()]}
        assert json.loads(row["numbers"]) == found["numbers"] and set(found["numbers"]) == {"Report"}
    worker.close()
    assert len(list(ran.folder.glob("pictures/*/*.png"))) == 38
