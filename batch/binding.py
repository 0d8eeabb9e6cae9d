"""Which column fills which input of a workflow, and the workflow that a row asks for."""
import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from .table import Picture, Row, TableError

NUMBERS = {"INT": int, "FLOAT": float}
WIDGETS = {*NUMBERS, "STRING", "BOOLEAN", "COMBO", "*"}  # what an input takes that is typed in
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Binding:
    """A column and the input of a node that it fills.

    kind: the input's type, PICTURE if it names a file of the host's input folder, or "" if nobody knows it.
    """
    column: str
    node: str
    input: str
    kind: str

    def value(self, row: Row, folder: Path):
        """A row's value as the input takes it; a Picture for a picture. folder: where a table's file names begin."""
        given = row.values.get(self.column)
        nothing = given is None or self.kind not in NUMBERS and given != given  # NaN, as pandas writes nothing
        if nothing or self.kind == "PICTURE" and given == "":
            named = f" ({row.values['name']})" if "name" in row.values else ""
            raise TableError(f"row {row.number}{named} has no {self.column!r}: fill it in, or leave the row out")
        if self.kind == "PICTURE":
            return given if isinstance(given, Picture) else Picture(str(given), folder / str(given))
        if isinstance(given, Picture):
            raise TableError(f"row {row.number}: {self.column!r} is a picture, {self.input!r} takes {self.kind}")
        try:
            if self.kind in NUMBERS:
                exact = Decimal(given) if isinstance(given, str) else given  # a CSV's 7.0 is 7, 64 bits stay whole
                if self.kind == "INT" and abs(exact) >= 2 ** 64:  # int() of 1e999999999 would never end
                    raise ValueError
                number = NUMBERS[self.kind](exact)
                if number != number or self.kind == "INT" and number != exact:
                    raise ValueError
                return number
            if self.kind == "BOOLEAN":
                return given if isinstance(given, bool) else WORDS[str(given).lower()]
            if isinstance(given, (list, dict)):
                raise ValueError
        except (ValueError, KeyError, TypeError, ArithmeticError):
            raise TableError(f"row {row.number}: {self.column} is {given!r}, but {self.input!r} takes "
                             f"{self.kind}") from None
        return str(given) if self.kind == "STRING" else given


def read_workflow(path: Path) -> dict:
    """{node: {class_type, inputs, _meta.title}} of a workflow that was exported for the API."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read as a workflow: {error}") from None
    if not graph or not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n
                                                           for n in graph.values()):
        raise TableError(f"{path} is no workflow in API format: in ComfyUI choose File > Export (API)")
    return graph


def title(graph: dict, node: str) -> str:
    return graph[node].get("_meta", {}).get("title", node)


def names(graph: dict) -> dict:
    """{node: its title, or its number where another has that title too}."""
    titles = {node: title(graph, node) for node in graph}
    count = Counter(titles.values())
    return {node: called if count[called] == 1 else node for node, called in titles.items()}


def find(graph: dict, place: str) -> tuple[str, str]:
    """(node, input) of "Node title.input" or "id.input"."""
    named, _, name = place.rpartition(".")
    found = [named] if named in graph else [node for node in graph if title(graph, node) == named]
    found = [node for node in found if name in graph[node]["inputs"]] or found
    if not found:
        raise TableError(f"{place!r} names no node: the workflow has "
                         + ", ".join(repr(title(graph, node)) for node in graph))
    if len(found) > 1:
        raise TableError(f"{place!r} could be each of the nodes {', '.join(found)}: use a node's number, "
                         f"{found[0]}.{name}")
    return found[0], name


def bind(graph: dict, info: dict, columns, chosen: dict) -> list[Binding]:
    """The bindings of a table's columns.

    info: the host's /object_info of the graph's nodes, as far as it is known.
    chosen: {"Node title.input": column}. A column that is named as an input binds itself.
    """
    places = {column: column for column in columns if _names_an_input(graph, column)} | chosen
    missing = sorted(set(places.values()) - set(columns))
    if missing:
        raise TableError(f"the table has no column {', '.join(missing)}: it has {', '.join(columns)}")
    if not places:
        raise TableError(f"no column is bound to an input: name them, as --set \"Node title.input=column\"; the table "
                         f"has {', '.join(columns)}")
    found = {}
    for place, column in places.items():
        binding = _binding(graph, info, *find(graph, place), column)
        other = found.setdefault((binding.node, binding.input), binding)
        if other is not binding:
            raise TableError(f"{other.column!r} and {column!r} both fill {binding.input!r} of "
                             f"{title(graph, binding.node)!r}: leave one out")
    return list(found.values())


def _names_an_input(graph: dict, column: str) -> bool:
    named, dot, name = column.rpartition(".")
    return bool(dot) and any(named in (node, title(graph, node)) and name in graph[node]["inputs"] for node in graph)


def _binding(graph, info, node, name, column) -> Binding:
    kind = graph[node]["class_type"]
    if kind not in info:
        if name not in graph[node]["inputs"]:
            raise TableError(f"{title(graph, node)!r} has no input {name!r}: it has {', '.join(graph[node]['inputs'])}")
        return Binding(column, node, name, "")
    inputs = _inputs(info, kind)
    if name not in inputs:
        raise TableError(f"{title(graph, node)!r} has no input {name!r}: it has {', '.join(inputs)}")
    type_, options = inputs[name]
    if options.get("image_upload"):
        return Binding(column, node, name, "PICTURE")
    type_ = "COMBO" if isinstance(type_, list) else type_
    if isinstance(graph[node]["inputs"].get(name), list) and not WIDGETS & {*type_.split(",")}:
        raise TableError(f"{name!r} of {title(graph, node)!r} takes {type_} from another node: no column can fill it")
    return Binding(column, node, name, type_)


def _inputs(info, kind) -> dict:
    """{input: (its type, its options)} of a node."""
    parts = info[kind]["input"] if kind in info else {}
    return {n: (*spec, {})[:2] for part in ("required", "optional") for n, spec in parts.get(part, {}).items()}


def fixed_pictures(graph: dict, info: dict, bindings: list[Binding]) -> list[tuple[str, str]]:
    """(node, "Node title.input") of the files that a workflow loads and no column names."""
    bound = {(b.node, b.input) for b in bindings}
    uploads = ((node, name) for node, found in graph.items()
               for name, (_, options) in _inputs(info, found["class_type"]).items() if options.get("image_upload"))
    return [(node, f"{names(graph)[node]}.{name}") for node, name in uploads if (node, name) not in bound]


def filled(graph: dict, bindings: list[Binding], values: dict) -> dict:
    """The workflow with {Binding: value} put in."""
    graph = json.loads(json.dumps(graph))
    for binding in bindings:
        graph[binding.node]["inputs"][binding.input] = values[binding]
    return graph
