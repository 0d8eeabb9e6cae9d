"""The rows of a table: a folder of pictures, CSV, Parquet, or WebDataset's tar files.

A folder and a tar file give a row for every stem: `cat.png`, `cat.mask.png`, `cat.txt` and `cat.json` are one row with
the columns `picture`, `mask`, `txt` and those of the JSON. Every such row has a column `name`, its stem.
"""
import csv
import itertools
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class TableError(ValueError):
    """What is wrong with a table, and where."""


@dataclass(frozen=True)
class Picture:
    """A picture that is read when its row's turn comes: a file, a part of a tar file, or bytes of a table.

    place: its name for people.
    """
    place: str
    path: "Path | None" = None
    start: int = 0
    size: int = -1
    held: bytes = b""

    def read(self) -> bytes:
        if self.path is None:
            return self.held
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Row:
    """number: as people count it, from 1."""
    number: int
    values: dict


def read_table(path: Path) -> list[Row]:
    """The rows of a file or folder. TableError if it has none."""
    kind = path.suffix.lower()
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file()]
        found = _members((p.relative_to(path).as_posix(), Picture(p.relative_to(path).as_posix(), p)) for p in files)
    elif not path.is_file():
        raise TableError(f"there is no table {path}: name a folder of pictures, or a .csv, .parquet or .tar file")
    elif kind == ".csv":
        found = _csv(path)
    elif kind == ".parquet":
        found = _parquet(path)
    elif kind == ".tar":
        try:
            with tarfile.open(path, "r:") as archive:
                found = _members((m.name, Picture(f"{path.name}:{m.name}", path, m.offset_data, m.size))
                                 for m in archive if m.isfile())
        except tarfile.TarError as error:
            raise TableError(f"{path} cannot be read as a tar file without compression ({error}): make it anew, or "
                             "unpack it and name the folder") from None
    else:
        raise TableError(f"{path} is no table: name a folder of pictures, or a .csv, .parquet or .tar file")
    if not found:
        raise TableError(f"{path} has no rows")
    return [Row(number, values) for number, values in enumerate(found, 1)]


def _members(files) -> list[dict]:
    """Rows of the files (name, Picture) of a folder or tar file, by their stem: the name up to its first dot."""
    rows = {}
    for name, file in files:
        folder, _, last = name.rpartition("/")
        stem, _, kind = last.partition(".")
        if not stem:  # a hidden file
            continue
        row = rows.setdefault(f"{folder}/{stem}" if folder else stem, {})
        found = _columns(file, *kind.rpartition(".")[::2])
        twice = row.keys() & found.keys()
        if twice:
            raise TableError(f"{name} is the second file of its row with {min(twice)!r}: the part of the name before "
                             "the first dot makes the row, so rename one of them")
        row |= found
    return [{"name": name, **row} for name, row in rows.items() if row]


def _columns(file: Picture, part: str, suffix: str) -> dict:
    """What a file gives to its row."""
    suffix = f".{suffix.lower()}"
    if suffix in PICTURES:
        return {part or "picture": file}
    try:
        if suffix == ".txt":
            return {part or "txt": file.read().decode("utf-8-sig").strip()}
        return dict(json.loads(file.read())) if suffix == ".json" else {}
    except (ValueError, TypeError) as error:
        raise TableError(f"{file.place} cannot be read ({error}): text is UTF-8, JSON an object of columns") from None


def _csv(path: Path) -> list[dict]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, header = list(table), table.fieldnames or ()
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it so") from None
    except csv.Error as error:
        raise TableError(f"{path} cannot be read beyond line {table.line_num} ({error}): look for a quotation mark "
                         "that is not closed") from None
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise TableError(f"{path} has {header.count(twice)} columns {twice!r}: rename or delete all but one")
    for number, values in enumerate(rows, 1):
        if None in values or None in values.values():
            raise TableError(f"row {number} of {path} has {'more' if None in values else 'fewer'} cells than the "
                             "header: mend it, or quote the text that holds commas")
    return rows


def _parquet(path: Path) -> list[dict]:
    import pyarrow.parquet
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise TableError(f"{path} cannot be read as Parquet ({error}): write or download it anew") from None
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if isinstance(value, dict) and value.keys() == {"bytes", "path"}:  # a picture of Hugging Face's
                row[name] = value = value["bytes"] or value["path"]
            if isinstance(value, bytes):
                row[name] = Picture(f"{path.name}, row {number}, {name}", held=value)
    return rows


def with_grid(rows: list[Row], grid: dict) -> list[Row]:
    """Every row with every combination of settings. grid: {column: its values}. The rows keep their numbers."""
    twice = next((name for row in rows for name in row.values if name in grid), None)
    if twice:
        raise TableError(f"the table has a column {twice!r}, which --grid fills too: leave one out")
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return [replace(row, values=row.values | more) for row in rows for more in combinations]
