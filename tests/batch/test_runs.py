"""A batch on real workers: its driver is killed, then one of its workers, and one of its rows fails."""
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
import numpy as np
import psutil
import pytest

ray = pytest.importorskip("ray", reason="the extra `batch` is not installed")
import pyarrow.parquet  # noqa: E402
from palimpsest.batch.isolated import Server  # noqa: E402
from palimpsest.batch.worker import FOLDERS, Worker  # noqa: E402
from palimpsest.bench import pie, scenes  # noqa: E402
from palimpsest.bench.summary import NOBODY  # noqa: E402
from palimpsest.miniature.scenes import held_out_edit  # noqa: E402
from palimpsest.tests.batch.graphs import GRAPH  # noqa: E402
from PIL import Image  # noqa: E402

from pack import ROOT  # noqa: E402

FAULTS = ROOT / "tests" / "batch" / "faults.py"
ROWS = [{"Scene.seed": seed, "Sample.cfg": cfg, "Fault.what": "raise" if (seed, cfg) == (5, 3) else "nothing"}
        for seed in range(10) for cfg in range(2, 6)]


def filled(row):
    """The workflow of a row."""
    graph = json.loads(json.dumps(GRAPH))
    graph["scene"]["inputs"]["seed"], graph["fault"]["inputs"]["what"] = row["Scene.seed"], row["Fault.what"]
    graph["sample"]["inputs"]["cfg"] = float(row["Sample.cfg"])
    return graph


class Run:
    """The command as a user starts it."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        (folder / "graph.json").write_text(json.dumps(GRAPH))
        lines = [ROWS[0], *(row.values() for row in ROWS)]
        (folder / "rows.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))

    def start(self, workers):
        command = [sys.executable, ROOT / "tools" / "pack.py", "palimpsest.batch.command", self.folder / "graph.json",
                   self.folder / "rows.csv", "--out", self.folder / "out", "--workers", workers,
                   "--group-by", "Scene.seed", "--pack", FAULTS]
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
    process = run.start("1")
    try:
        run.wait(process, 6)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        first = run.done()
        process = run.start("2")
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


def test_a_failure_is_a_row_with_node_error_and_remedy(ran):
    failed, = (r for r in ran.rows if r["error"])
    assert ran.table[failed["row"]]["Fault.what"] == "raise" and "1 row failed" in ran.said
    assert (failed["node"], failed["exception"]) == ("Fault", "ValueError")
    assert failed["error"] == "the word zebra stands in no prompt: choose one that does"


def test_a_picture_is_inverted_once_by_the_worker_that_has_its_rows(ran):
    shared = Counter((r["group"], r["worker"]) for r in ran.rows if not r["error"])
    inverted = Counter((r["group"], r["worker"]) for r in ran.rows if r["inverted"])
    whole = [pair for pair, rows in shared.items() if rows == 4]
    assert len(whole) >= 5 and all(inverted[pair] == 1 for pair in whole)
    by_kind = {r["inverted"]: r["evaluations"] for r in ran.rows if not r["error"]}
    assert by_kind == {True: 6, False: 4}


def test_a_server_of_its_own_gives_the_same_pictures(ran, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray's workers have it; more threads may round otherwise
    server = Server([FAULTS])
    try:
        row = next(r for r in ran.rows if not r["error"])
        found = server(filled(ran.table[row["row"]]), {})
        assert found["pictures"] == {"Save": [Path(ran.folder, *row["pictures"]).read_bytes()]} and found["inverted"]
        assert found["numbers"] == json.loads(row["numbers"])
        failed = server(filled({**ran.table[row["row"]], "Fault.what": "raise"}), {})
        assert (failed["node"], failed["error"][:14]) == ("Fault", "the word zebra")
    finally:
        server.close()


def test_scene_bench_gives_the_same_lines_by_workers(tmp_path, monkeypatch):
    def lines(*more):
        monkeypatch.setattr(scenes, "LINES", tmp_path / str(len(more)))
        monkeypatch.setattr(sys, "argv", ["scenes", "--kind", "colour", "style", "--steps", "2", "--cases", "1",
                                          "--out", str(tmp_path), "--inversion", "DDIM", "--editor", "plain", *more])
        scenes.main()
        path, = scenes.LINES.glob("*.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in found), key=str)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        alone = lines()
        assert lines("--workers", "1") == alone and len(alone) > 10
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    finally:
        ray.shutdown()


def test_pie_bench_gives_the_same_lines_by_workers(tmp_path, monkeypatch):
    (tmp_path / "annotation_images").mkdir()
    edit = held_out_edit(0, "colour")
    Image.fromarray((edit.source_image * 255).astype(np.uint8)).save(tmp_path / "annotation_images" / "a.png")
    (tmp_path / "mapping_file.json").write_text(json.dumps({"0": {
        "image_path": "a.png", "original_prompt": edit.source_text, "editing_prompt": edit.target_text,
        "editing_type_id": "1", "mask": [128 * 40, 128 * 30]}}))

    def lines(name, *more):
        monkeypatch.setattr(sys, "argv", ["pie", str(tmp_path), "--steps", "2", "--out", str(tmp_path / name),
                                          "--inversion", "DDIM", "Negative-prompt", "--editor", "plain", *more])
        pie.main()
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        alone = lines("alone")
        assert lines("by workers", "--workers", "1") == alone
    finally:
        ray.shutdown()
    assert [(row["inversion"], row["editor"]) for row in alone] == [
        (NOBODY, "autoencoder"), (NOBODY, "fresh noise"), ("DDIM", "plain"), ("Negative-prompt", "plain")]
    assert alone[2]["pie_psnr"] != alone[3]["pie_psnr"]


def test_pictures_and_numbers_are_those_of_a_process_alone(ran, monkeypatch):
    for kind in FOLDERS:  # which a Worker sets for its process
        name = f"{kind}_directory"
        monkeypatch.setattr(folder_paths, name, getattr(folder_paths, name))
    worker = Worker([FAULTS])
    fine = [r for r in ran.rows if not r["error"]]
    for row in fine[3], fine[20]:
        found = worker(filled(ran.table[row["row"]]), {})
        picture, = row["pictures"]
        assert found["pictures"] == {"Save": [Path(ran.folder, picture).read_bytes()]}
        assert json.loads(row["numbers"]) == found["numbers"] and set(found["numbers"]) == {"Report"}
    worker.close()
    assert len(list(ran.folder.glob("pictures/*/*.png"))) == 39


def test_a_killed_drivers_processes_went_with_it(ran):
    """Last here: Ray's agents say goodbye to a dead driver for a minute."""
    assert ran.workers and not psutil.wait_procs(ran.workers, timeout=30)[1]
