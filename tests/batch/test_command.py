"""The command around the engine: which rows are to do, what is written, what is said before and instead of a run."""
import errno
import json
import os
import tempfile
from collections import deque
from types import SimpleNamespace

import folder_paths
import numpy as np
import psutil
import pytest

pytest.importorskip("ray", reason="the extra `batch` is not installed")
import pyarrow.parquet  # noqa: E402
from palimpsest.batch import command, isolated, output, report, worker  # noqa: E402
from palimpsest.batch.engine import Item  # noqa: E402
from palimpsest.batch.table import Picture, TableError  # noqa: E402
from palimpsest.tests.batch.graphs import GRAPH  # noqa: E402
from PIL import Image  # noqa: E402

PHOTOS = {"photo": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Photo"}},
          "small": {"class_type": "ImageScaleBy", "inputs": {"image": ["photo", 0], "upscale_method": "area",
                                                             "scale_by": 0.5}, "_meta": {"title": "Scale"}},
          "saved": {"class_type": "SaveImage", "inputs": {"images": ["small", 0], "filename_prefix": "p"}}}


class Alone:
    """The engine's part, played in this process.

    fails, ends: numbers of rows that fail, or end their worker. stop: the row at which somebody interrupts.
    """
    fails, ends, stop, workers = (), (), None, 2

    def __init__(self, made, settings, options, send, done, lost, tell):
        self.done, self.lost, self.send = done, lost, send
        self.work = worker.Worker(**settings)

    def run(self, groups):
        seat = type("Seat", (), {"sent": set()})()
        for item in deque(Item(job) for group in groups for job in group):
            if item.job.row.number == Alone.stop:
                raise KeyboardInterrupt
            if item.job.row.number in Alone.ends:
                item.tries = item.losses = 2
                self.lost(item, "it ended its worker 2 times: killed")
                continue
            failed = worker.failure("no such thing: choose another", "Scale", "ValueError")
            try:
                graph, pictures = self.send(item, seat)
            except OSError as error:
                self.lost(item, f"its picture cannot be read: {error}")
                continue
            self.done(item, failed if item.job.row.number in Alone.fails else self.work(graph, pictures))
        self.work.close()


@pytest.fixture(scope="module")
def host():
    return worker.host_nodes()


@pytest.fixture
def batch(tmp_path, monkeypatch, host):
    """Runs the command on a folder of three photos. Returns its exit status."""
    monkeypatch.setattr(worker, "host_nodes", lambda packs: host)  # which a process registers once
    for kind in worker.FOLDERS:
        monkeypatch.setattr(folder_paths, f"{kind}_directory", getattr(folder_paths, f"{kind}_directory"))
    monkeypatch.setattr(command, "Engine", Alone)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in (("fails", ()), ("ends", ()), ("stop", None)):
        monkeypatch.setattr(Alone, name, value)
    (tmp_path / "photos").mkdir()
    for name, shade in (("a", 10), ("b", 99), ("c", 200)):
        Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(tmp_path / "photos" / f"{name}.png")

    def run(*more, graph=PHOTOS, table="photos"):
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        monkeypatch.setattr("sys.argv", ["batch", str(tmp_path / "graph.json"), str(tmp_path / table), "--out",
                                         str(tmp_path / "out"), "--set", "Photo.image=picture", *more])
        return command.main()

    return run


def runs(tmp_path):
    """{folder: its rows by number}. No row stands in one twice."""
    found = {folder.name: pyarrow.parquet.read_table(folder / "parts").to_pylist()
             for folder in (tmp_path / "out").iterdir()}
    assert all(len({r["key"] for r in rows}) == len(rows) for rows in found.values())
    return {name: {r["row"]: r for r in rows} for name, rows in found.items()}


def test_a_folder_of_photos_becomes_pictures_and_rows(batch, tmp_path):
    assert batch("--grid", "Scale.scale_by=0.5, 0.25, 0.5", "--grid", "Scale.upscale_method=area, bicubic",
                 "--format", "webp") == 0
    (name, rows), = runs(tmp_path).items()
    about = json.loads((tmp_path / "out" / name / "run.json").read_text())
    assert about["workflow"] == PHOTOS and about["ComfyUI"] and about["palimpsest"]
    parts = pyarrow.parquet.read_table(tmp_path / "out" / name / "parts")
    assert parts.num_rows == 12 and json.loads(parts.schema.metadata[b"palimpsest"]) == about
    sizes, shades = [], []
    for row in parts.to_pylist():
        with Image.open(tmp_path / "out" / name / row["pictures"][0]) as image:
            assert image.format == "WEBP"
            sizes.append((json.loads(row["values"])["Scale.scale_by"], image.width))
            shades.append((json.loads(row["values"])["name"], round(np.asarray(image).mean() / 10)))
    assert set(sizes) == {("0.5", 8), ("0.25", 4)} and set(shades) == {("a", 1), ("b", 10), ("c", 20)}


def test_only_what_is_missing_is_done_and_failures_only_when_asked(batch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Alone, "fails", (2,))
    monkeypatch.setattr(Alone, "stop", 3)
    assert batch() == 130 and "interrupted: the same command goes on where it was" in capsys.readouterr().err
    (name, rows), = runs(tmp_path).items()
    assert {n: r["error"] for n, r in rows.items()} == {1: "", 2: "no such thing: choose another"}
    monkeypatch.setattr(Alone, "stop", 1)  # would stop if the first row were done again
    assert batch() == 0
    assert "3 rows, 2 done before" in (said := capsys.readouterr().out) and "1 row failed" in said
    monkeypatch.setattr(Alone, "fails", ())
    assert batch("--retry-failed") == 0 and "1 row failed" not in capsys.readouterr().out
    (again, after), = runs(tmp_path).items()
    assert again == name and sorted(after) == [1, 2, 3] and not any(r["error"] for r in after.values())
    assert after[1] == rows[1]


def test_a_row_that_ends_its_workers_is_a_failed_row(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(Alone, "ends", (2,))
    assert batch() == 0
    (_, rows), = runs(tmp_path).items()
    assert sorted(rows) == [1, 2, 3] and [n for n, r in rows.items() if r["error"]] == [2]
    assert rows[2]["error"] == "row 2: it ended its worker 2 times: killed" and rows[2]["attempts"] == 2


def test_a_changed_workflow_is_another_run(batch, tmp_path):
    changed = json.loads(json.dumps(PHOTOS))
    changed["small"]["inputs"]["upscale_method"] = "bilinear"
    assert batch() == batch(graph=changed) == batch() == 0
    found = runs(tmp_path)
    assert len(found) == 2 and all(len(rows) == 3 for rows in found.values())
    assert len({r["key"] for rows in found.values() for r in rows.values()}) == 6


def test_a_picture_that_nothing_can_read_is_one_failed_row(batch, tmp_path):
    (tmp_path / "photos" / "b.png").write_bytes(b"no picture")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "photos" / "c.png")
    os.truncate(tmp_path / "photos" / "c.png", 6000)  # ComfyUI would draw the rest grey
    assert batch("--grid", "Scale.scale_by=0.5,0.25", "--grid", "Scale.upscale_method=area") == 0
    rows = pyarrow.parquet.read_table(next((tmp_path / "out").iterdir()) / "parts").to_pylist()
    assert [r["row"] for r in rows if not r["error"]] == [1, 1]
    for number, said in (2, "row 2: the picture b.png cannot be read (it is no picture"), (3, "row 3: its picture can"):
        assert [r["error"].startswith(said) for r in rows if r["row"] == number] == [True, True]
    for name in "bc":  # "replace it"
        noise.save(tmp_path / "photos" / f"{name}.png")
    assert batch("--grid", "Scale.scale_by=0.5,0.25", "--grid", "Scale.upscale_method=area") == 0
    rows = pyarrow.parquet.read_table(next((tmp_path / "out").iterdir()) / "parts").to_pylist()
    assert sorted(r["row"] for r in rows) == [1, 1, 2, 2, 3, 3] and not any(r["error"] for r in rows)


def test_a_full_disk_names_its_row_and_the_next_run_goes_on_with_it(batch, tmp_path, monkeypatch, capsys):
    """A disk that is full has no room for the Parquet file either."""
    write, room = output.replaced, iter([True, False])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "replaced", lambda path, data: (
        full() if path.suffix == ".png" and not next(room) else write(path, data)))
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", full)
        assert batch() == 1
        said = capsys.readouterr().err
        assert "row 2 could not be written (No space left on device): make room in" in said
        assert len(said.splitlines()) == 1
        monkeypatch.setattr(output, "replaced", write)
        assert batch() == 1 and "3 rows, 1 done before" in (said := capsys.readouterr()).out
        assert "000000.parquet could not be written (No space left on device): make room, and" in said.err
    assert batch() == 0 and "3 rows, 3 done before" in capsys.readouterr().out
    assert sorted(*runs(tmp_path).values()) == [1, 2, 3]


def test_a_second_command_on_the_same_folder_is_refused_while_the_first_runs(batch, tmp_path, monkeypatch, capsys):
    said, engine = [], Alone.run

    def twice(alone, groups):
        monkeypatch.setattr(Alone, "run", engine)
        said.append((batch(), capsys.readouterr().err))
        engine(alone, groups)

    monkeypatch.setattr(Alone, "run", twice)
    assert batch() == 0
    (status, words), = said
    assert status == 1 and "another process does these rows" in words and "another --out" in words
    assert sorted(*runs(tmp_path).values()) == [1, 2, 3]


def test_a_line_that_was_cut_off_is_a_row_to_do_again(batch, tmp_path, monkeypatch, capsys):
    """The driver is killed while it writes, and after it did that row again."""
    with monkeypatch.context() as killed:
        killed.setattr(output.Store, "pack", lambda store: None)
        assert batch() == 0
        journal, = (tmp_path / "out").glob("*/journal.jsonl")
        journal.write_bytes(journal.read_bytes()[:-20])
        assert batch() == 0 and "3 rows, 2 done before" in capsys.readouterr().out
    assert batch() == 0 and "3 rows, 3 done before" in capsys.readouterr().out
    assert sorted(*runs(tmp_path).values()) == [1, 2, 3]


def test_rows_that_the_host_refuses_are_told_before_any_runs(batch, tmp_path, capsys):
    assert batch("--grid", "Scale.scale_by=0.5,-1") == 1
    said = capsys.readouterr().err
    assert "row 1: node small: Value -1.0 smaller than min" in said and not (tmp_path / "out").exists()
    assert batch("--grid", "small.upscale_method=area,zebra") == 1
    assert "zebra" in capsys.readouterr().err
    for place, said in (("Sacle.scale_by", "names no node"), ("Scale.scale", "has no input 'scale'")):
        assert batch("--grid", f"{place}=0.5,0.25") == 1 and said in capsys.readouterr().err
    fixed = {**PHOTOS, "other": {"class_type": "LoadImage", "inputs": {"image": "other.png"}},
             "also": {"class_type": "SaveImage", "inputs": {"images": ["other", 0], "filename_prefix": "o"}}}
    assert batch(graph=fixed) == 1
    assert 'so give it --set "other.image=COLUMN", or for one file --grid "other.image=FILE"' in capsys.readouterr().err
    assert batch(graph=GRAPH) == 1
    assert "have no node BatchTestFault: name its pack with --pack" in capsys.readouterr().err


def test_nodes_of_one_title_keep_their_pictures_in_the_workflows_order(batch, tmp_path):
    """ComfyUI runs nodes that need nothing of each other in any order."""
    twice = {**PHOTOS, "whole": {"class_type": "SaveImage", "inputs": {"images": ["photo", 0], "filename_prefix": "w"}}}
    twice = {node: {**found, "_meta": {"title": "Save Image"}} if found["class_type"] == "SaveImage" else found
             for node, found in twice.items()}
    assert batch(graph=twice) == 0
    (name, rows), = runs(tmp_path).items()
    for row in rows.values():
        sizes = [Image.open(tmp_path / "out" / name / picture).width for picture in row["pictures"]]
        assert sizes == [8, 16]
    shown = {node: {"text": [f"n: {n}"]} for n, node in enumerate(("whole", "saved", "small"))}
    assert worker.numbers(twice, shown) == {"saved": {"n": 1.0}, "whole": {"n": 0.0}, "Scale": {"n": 2.0}}


def test_videos_are_kept_as_they_are_under_their_own_kind(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 255)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.png")
    (tmp_path / "film.mp4").write_bytes(bytes(4) + b"ftypisom")
    files = [{"filename": p.name, "type": "output"} for p in sorted(tmp_path.iterdir())]
    kept = worker.kept_pictures({"1": {"class_type": "SaveVideo", "inputs": {}}}, {"1": {"images": files}}, set(),
                                "webp", lambda image: tmp_path / image["filename"])["1"]
    film, moving, still = kept
    assert film == (tmp_path / "film.mp4").read_bytes() and moving == (tmp_path / "moving.webp").read_bytes()
    assert still[8:12] == b"WEBP"
    store = SimpleNamespace(folder=tmp_path)
    names = [output.Store._picture(store, "key", number, data) for number, data in enumerate(kept)]
    assert [name.rpartition(".")[2] for name in names] == ["mp4", "webp", "webp"]


@pytest.mark.parametrize("option", ["--set", "--grid"])
def test_an_input_that_is_named_twice_is_refused(option, batch, capsys):
    with pytest.raises(SystemExit):
        batch(option, "Scale.scale_by=0.5", option, "Scale.scale_by=0.25")
    assert "'Scale.scale_by' is given twice" in capsys.readouterr().err


def test_pictures_of_a_node_that_is_not_there_are_not_promised(batch, tmp_path, capsys):
    assert batch("--picture", "Sacle") == 1
    assert "--picture names 'Sacle', and no node" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_picture_that_could_not_be_read_is_not_taken_for_sent(batch, tmp_path, monkeypatch):
    """Two rows of one picture: reading fails for the first, and for the second no more."""
    seat, sent = type("Seat", (), {"sent": set()})(), []

    def run(alone, groups):
        items = [Item(job) for group in groups for job in group][:2]
        read = Picture.read
        monkeypatch.setattr(Picture, "read", lambda picture: (_ for _ in ()).throw(OSError("the share is gone")))
        with pytest.raises(OSError, match="the share is gone"):
            alone.send(items[0], seat)
        monkeypatch.setattr(Picture, "read", read)
        sent.extend(alone.send(item, seat)[1] for item in items)
        raise KeyboardInterrupt

    monkeypatch.setattr(Alone, "run", run)
    assert batch("--grid", "Scale.scale_by=0.5,0.25") == 130
    assert len(sent[0]) == 1 and not sent[1]


def test_a_server_of_its_own_keeps_the_files_of_its_last_row_alone(tmp_path, monkeypatch):
    """Its folders would hold every picture of a run, and those that were loaded."""
    server = object.__new__(isolated.Server)
    server.base, server.server, server.shown = tmp_path, SimpleNamespace(process=psutil.Process()), {}
    for kind in worker.FOLDERS:
        (tmp_path / kind).mkdir()

    def run(graph):
        name = graph["photo"]["inputs"]["image"]
        (tmp_path / "output" / name).write_bytes(b"made")
        server.shown = {"saved": {"images": [{"type": "output", "subfolder": "", "filename": name}]}}
        return worker.failure("", "", "")

    monkeypatch.setattr(server, "_run", run)
    for name in ("a.png", "b.png"):
        server({"photo": {"class_type": "LoadImage", "inputs": {"image": name}}}, {name: b"given"})
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.glob("*/*"))] == [
        "input/b.png", "output/b.png"]


def test_a_dry_run_of_groups_of_one_row_leaves_out_the_first_which_loads_the_model(batch, monkeypatch, capsys):
    seconds = iter([1000.0, 1.0])
    monkeypatch.setattr(worker.Worker, "__call__", lambda *_: {
        "seconds": next(seconds), "evaluations": 4, "pictures": {}, "error": ""})
    assert batch("--dry-run") == 0
    assert "0:00:01 on these workers (0:00:03 on one)" in capsys.readouterr().out


def test_a_dry_run_tells_groups_time_and_disk_and_leaves_nothing(batch, tmp_path, capsys):
    assert batch("--grid", "Scale.scale_by=0.5,0.25", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 rows in 3 groups, on 2 workers" in said and "MB of pictures" in said and not (tmp_path / "out").exists()


def test_progress_tells_rate_time_left_failures_and_workers(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    progress = report.Progress(total=100, before=20)
    one, two = SimpleNamespace(number=1), SimpleNamespace(number=2)
    for seat, words in (one, "is ready, process 7"), (two, "is ready, process 8"), (two, "ended: it was killed"):
        progress.worker(seat, words)
    now[0] = 60.0
    for number in range(25):
        progress.row({"error": "" if number else "no"})
    assert progress.line() == "45 of 120 rows, 1 failed, 25.0 a minute, 0:03:00 left; 1 workers, 1 ended"
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["worker 1 is ready, process 7", "worker 2 is ready, process 8", "worker 2 ended: it was killed"]
    assert len(said) == 4 and said[3].startswith("21 of 120 rows, 1 failed"), "a line every 15 seconds, not every row"


def test_a_forecast_counts_an_inversion_a_group():
    def row(seconds, evaluations, size):
        return {"seconds": seconds, "evaluations": evaluations, "pictures": {"Save": [b"0" * size]}}

    said = report.forecast([row(60, 1, 1), row(4.0, 150, 10 ** 6), row(2.0, 100, 10 ** 6)], 700, 7000, 8)
    assert said.splitlines() == [
        "7000 rows in 700 groups, on 8 workers",
        "735000 rows through the network: 150 for a group's first row, 100 for each other, 0.0267 s each",
        "0:32:05 on these workers (4:16:40 on one)", "7000.0 MB of pictures"]


def test_results_inside_the_tables_folder_are_refused_before_anything_is_read(tmp_path):
    """Their pictures would be rows of the next run."""
    (tmp_path / "flow.json").write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": {}}}))
    (tmp_path / "photos").mkdir()
    args = SimpleNamespace(workflow=tmp_path / "flow.json", grid=[], table=tmp_path / "photos",
                           out=tmp_path / "photos" / "edits" / "mine")
    with pytest.raises(TableError, match="lies in the table's folder.*name a folder beside it"):
        command.Batch(args)
