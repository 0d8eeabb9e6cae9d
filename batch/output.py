"""What a run leaves: pictures, and Parquet with one row for every row that is done.

A row is done once its line stands in the journal, which is written after its pictures and reaches the disk at once.
Every PART lines become a Parquet file. So a run that is broken off anywhere goes on where it was.
"""
import json
import os
from contextlib import nullcontext, suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet

from .plan import Job, Plan

PART = 256
MARKS = (("png", 0, b"\x89PNG"), ("webp", 8, b"WEBP"), ("gif", 0, b"GIF8"), ("mp4", 4, b"ftyp"),
         ("webm", 0, b"\x1aE\xdf\xa3"))  # what files of a kind hold, and where
SCHEMA = pyarrow.schema([
    ("key", "string"), ("row", "int64"), ("group", "string"), ("values", "string"), ("error", "string"),
    ("node", "string"), ("exception", "string"), ("attempts", "int64"), ("pictures", pyarrow.list_(pyarrow.string())),
    ("numbers", "string"), ("inverted", "bool"), ("evaluations", "int64"), ("seconds", "float64"),
    ("worker", "int64"), ("machine", "string")])


class Store:
    """A run's folder.

    held: {key: whether it failed} of the rows that are done.
    """

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.parts, self.journal = folder, folder / "parts", folder / "journal.jsonl"
        self.parts.mkdir(parents=True, exist_ok=True)
        about = folder / "run.json"
        if not about.exists():
            replaced(about, json.dumps(plan.about, indent=1).encode())
        self.schema = SCHEMA.with_metadata({"palimpsest": json.dumps(plan.about)})
        self.waiting = self._read_journal()
        self._forget_mended(plan)
        self.held = {row["key"]: bool(row["error"]) for part in self.parts.glob("*.parquet")
                     for row in pyarrow.parquet.read_table(part, columns=["key", "error"]).to_pylist()}
        self.packed = {*self.held}
        self.held |= {key: bool(line["error"]) for key, line in self.waiting.items()}

    def _read_journal(self) -> dict:
        """{key: line}. The last line is dropped where its writing was cut off."""
        lines = {}
        text = self.journal.read_bytes() if self.journal.exists() else b""
        whole = text[:text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            lines[row["key"]] = row
        if whole != text:
            replaced(self.journal, whole)
        return lines

    def _forget_mended(self, plan: Plan):
        """Drop the failures of rows whose picture has changed since: they have another key now."""
        failed = [line for line in self.waiting.values() if line["error"]]
        for part in self.parts.glob("*.parquet"):
            failed += pyarrow.parquet.read_table(part, columns=["key", "values"],
                                                 filters=[("error", "!=", "")]).to_pylist()
        keys = {job.key for job in plan.jobs}
        failed = [line for line in failed if line["key"] not in keys]
        wanted = {values(job) for job in plan.jobs} if failed else set()
        mended = {line["key"] for line in failed if line["values"] in wanted}
        self._drop(mended)
        self.waiting = {key: line for key, line in self.waiting.items() if key not in mended}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Pack what is there. An error of the run is told, not that of packing: the journal holds its rows."""
        with suppress(OSError) if error else nullcontext():
            self.pack()

    def add(self, job: Job, found: dict, attempts: int):
        """A row is done. An OSError names it."""
        try:
            names = [self._picture(job.key, number, data) for number, data in enumerate(
                data for files in found["pictures"].values() for data in files)]
            line = {"key": job.key, "row": job.row.number, "group": job.group, "values": values(job),
                    "attempts": attempts, "pictures": names, "numbers": json.dumps(found["numbers"]),
                    **{n: found.get(n) for n in ("error", "node", "exception", "inverted", "evaluations", "seconds",
                                                 "worker", "machine")}}
            with open(self.journal, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"row {job.row.number} could not be written ({error.strerror}): make room in "
                                       f"{self.folder}, and the same command goes on with this row") from None
        self.waiting[job.key] = line
        self.held[job.key] = bool(found["error"])
        if len(self.waiting) >= PART:
            self.pack()

    def _picture(self, key, number, data) -> str:
        kind = next((kind for kind, at, mark in MARKS if data[at:at + len(mark)] == mark), "jpg")
        name = f"pictures/{key[:2]}/{key}{f'-{number}' if number else ''}.{kind}"
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        replaced(self.folder / name, data)
        return name

    def pack(self):
        """Make the journal's lines a Parquet file. A row that was done again leaves the file that holds its failure."""
        if not self.waiting:
            return
        self._drop(self.packed & self.waiting.keys())
        numbers = [int(part.stem) for part in self.parts.glob("*.parquet")]
        self._write(self.parts / f"{max(numbers, default=-1) + 1:06}.parquet",
                    pyarrow.Table.from_pylist(list(self.waiting.values()), self.schema))
        replaced(self.journal, b"")
        self.packed |= self.waiting.keys()
        self.waiting = {}

    def _drop(self, keys: set):
        """Take rows out of the Parquet files."""
        for part in sorted(self.parts.glob("*.parquet")) if keys else ():
            old = pyarrow.parquet.read_table(part)
            kept = [key not in keys for key in old["key"].to_pylist()]
            if not any(kept):
                part.unlink()
            elif not all(kept):
                self._write(part, old.filter(pyarrow.array(kept)))

    def _write(self, path, table):
        draft = path.with_suffix(".draft")
        try:
            pyarrow.parquet.write_table(table, draft)
            with open(draft, "rb+") as file:  # before the journal that it replaces is emptied
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"{path} could not be written ({error.strerror}): make room, and the same "
                                       "command writes it") from None
        os.replace(draft, path)

    def rows(self) -> list[dict]:
        """All rows that are done."""
        self.pack()
        return [row for part in sorted(self.parts.glob("*.parquet"))
                for row in pyarrow.parquet.read_table(part).to_pylist()]


def values(job: Job) -> str:
    """The row's columns as JSON, a picture by its place."""
    return json.dumps({n: getattr(v, "place", v) for n, v in job.row.values.items()}, default=str)


def replaced(path: Path, data: bytes):
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
