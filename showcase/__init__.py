"""How each technique is shown and measured: one file a technique, under its name and in its folder of the other rooms.

A file ends in `EXAMPLE = Example(...)`. Workflows, help pictures and benchmarks are collected from these files, so that
a new file is all that a new technique needs here.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

LAST = 1000  # a row without a number of its own


@dataclass(frozen=True)
class Example:
    """What one file shows and measures.

    name: the technique's, as a table says it.
    workflows: its canvas workflows (drawing.Workflow, or drawing.Drawing).
    blueprints: its workflows folded into one node (folds.Blueprint).
    pages: node id -> draw(canvas, label), which draws the picture of the node's help page (pictures.py).
    scenes: its editors in SceneBench (rows.SceneRow).
    costs: its editors in the benchmark of costs (rows.CostRow).
    inversions: its rows in the benchmark of inversions (rows.InversionRow).
    elsewhere: for a technique without a workflow, the title of another workflow that shows it or can use it, or the
        reason why there is none.
    unmeasured: for an editor without a row in SceneBench, why it has none.
    """
    name: str
    workflows: tuple = ()
    blueprints: tuple = ()
    pages: Mapping[str, Callable] = field(default_factory=dict)
    scenes: tuple = ()
    costs: tuple = ()
    inversions: tuple = ()
    elsewhere: str = ""
    unmeasured: str = ""


def found() -> dict:
    """{"attention/masactrl": its Example} of every file, in the order of the files."""
    here, examples = Path(__file__).parent, {}
    for path in sorted(here.rglob("*.py")):
        parts = path.relative_to(here).with_suffix("").parts
        if parts[-1] != "__init__":
            module = import_module("." + ".".join(parts), __name__)
            if hasattr(module, "EXAMPLE"):
                examples["/".join(parts)] = module.EXAMPLE
    return examples


def collected(kind: str) -> list:
    """All files' workflows, blueprints, scenes, costs or inversions, sorted by `order`.

    A table goes from plain to strong and groups what is related. File names do not give that order.
    """
    return sorted((row for example in found().values() for row in getattr(example, kind)), key=lambda row: row.order)


def pages() -> dict:
    """{node id: draw(canvas, label)} of every help page that has a picture."""
    return {node: draw for example in found().values() for node, draw in example.pages.items()}
