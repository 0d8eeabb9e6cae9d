"""A run: what decides its results, its rows with their keys, and the groups that share an inversion."""
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .binding import Binding, filled
from .table import Picture, Row, TableError


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One row's work.

    key: of all that decides its result, so that equal work has equal keys and is done once.
    values: {Binding: value}, a picture as its file's name in the host's input folder.
    pictures: {that name: Picture}.
    broken: why it cannot be done, such as a picture that nothing can read.
    """
    key: str
    row: Row
    group: str
    values: dict
    pictures: dict
    broken: str = ""


@dataclass(frozen=True)
class Plan:
    """about: what decides all results: the workflow, its bindings, and the versions of host and pack."""
    graph: dict
    bindings: list[Binding]
    about: dict
    jobs: list[Job]
    name: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "name", digest(self.about)[:12])

    def graph_of(self, job: Job) -> dict:
        return filled(self.graph, self.bindings, job.values)

    def groups(self, jobs) -> list[list[Job]]:
        """Jobs of one group follow each other on one worker, whose cache then inverts their picture once."""
        found = {}
        for job in jobs:
            found.setdefault(job.group, []).append(job)
        return list(found.values())


def plan(graph: dict, bindings: list[Binding], rows: list[Row], versions: dict, folder: Path, grouped="",
         grids=()) -> Plan:
    """A row whose grid names one value twice, as 3 and 3.0, is planned with it once.

    grouped: the column whose equal values make a group. Without one, rows of one picture are a group.
    grids: the columns that a grid filled in. A picture there is one that rows share.
    """
    lacking = next((row for row in rows if grouped and grouped not in row.values), None)
    if lacking:
        raise TableError(f"row {lacking.number} has no {grouped!r} to group by: it has {', '.join(lacking.values)}")
    about = {"workflow": graph, "bindings": [[b.column, b.node, b.input] for b in bindings], **versions}
    run, seen, jobs, files, filled_in = digest(about), {}, [], {}, set()
    for row in rows:
        job = _job(run, bindings, row, folder, grouped, files, grids)
        asked = digest([row.number, [*job.values.values()]])
        if asked in filled_in:
            continue
        filled_in.add(asked)
        if job.key in seen:
            raise TableError(f"rows {seen[job.key]} and {row.number} are equal in every column: leave one out, or give "
                             "them a column that differs, such as a seed")
        seen[job.key] = row.number
        jobs.append(job)
    return Plan(graph, bindings, about, jobs)


def _job(run, bindings, row, folder, grouped, files, grids) -> Job:
    values, pictures, own, broken = {}, {}, [], ""
    for binding in bindings:
        value = binding.value(row, folder)
        if isinstance(value, Picture):
            if value not in files:
                files[value] = _named(value)
            name, wrong = files[value]
            if wrong:
                broken = f"row {row.number}: the picture {value.place} cannot be read ({wrong}): replace it"
            pictures[name] = value
            own += [name] * (binding.column not in grids)
            value = name
        values[binding] = value
    plain = {n: v.place if isinstance(v, Picture) else v for n, v in row.values.items()}
    key = digest([run, plain, [values[b] for b in bindings]])[:32]
    group = plain[grouped] if grouped else next(iter(own or pictures), key)
    return Job(key, row, str(group), values, pictures, broken)


def _named(picture: Picture) -> tuple[str, str]:
    """(the name of a picture's file in the host's input folder, from what the file holds; what is wrong with it)."""
    try:
        data = picture.read()
        with Image.open(io.BytesIO(data)) as image:
            return f"{hashlib.sha256(data).hexdigest()[:32]}.{(image.format or 'png').lower()}", ""
    except UnidentifiedImageError:
        return f"unreadable {picture.place}", "it is no picture of a known kind"
    except Exception as error:  # whatever its decoder raises
        return f"unreadable {picture.place}", str(error).replace(str(picture.path), picture.place)


def whole(picture: Picture) -> bytes:
    """A picture's file. OSError where its end is missing, which the host would draw grey."""
    data = picture.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))  # which spares most of a JPEG's decoding
            image.load()
    except Exception as error:  # whatever its decoder raises
        raise OSError(f"{picture.place}, {error}: replace it") from None
    return data


def shapes(plan: Plan) -> list[Job]:
    """Jobs that differ in what the host checks before it runs a workflow: the choices, and the ends of every number."""
    found, ends = {}, {}
    for job in (j for j in plan.jobs if not j.broken):
        found.setdefault(tuple(v if b.kind in ("COMBO", "BOOLEAN") else type(v) for b, v in job.values.items()), job)
        for binding in job.values:
            if binding.kind in ("INT", "FLOAT"):
                low, high = ends.get(binding, (job, job))
                ends[binding] = (min(low, job, key=lambda j: j.values[binding]),
                                 max(high, job, key=lambda j: j.values[binding]))
    chosen = [*found.values(), *(job for pair in ends.values() for job in pair)]
    return list({job.key: job for job in chosen}.values())
