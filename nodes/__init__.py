"""Thin node shells, one file a technique, in a folder named as its room."""
from functools import cache
from importlib import import_module
from pathlib import Path

from comfy_api.latest import io

from ..host.canvas import retracting


@cache
def found() -> list:
    """Every node class of this folder, in the order of its files. One that executes takes its last warnings back."""
    nodes = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        name = ".".join(path.relative_to(Path(__file__).parent).with_suffix("").parts)
        if path.stem != "__init__":
            module = import_module(f".{name}", __name__)
            nodes += [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, io.ComfyNode)
                      and cls.__module__ == module.__name__]
    for node in nodes:
        node.execute = classmethod(retracting(node.execute.__func__))
    return nodes
