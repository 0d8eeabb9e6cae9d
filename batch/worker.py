"""One worker: the host's executor in this process, which runs one row after another and keeps models and caches."""
import asyncio
import gc
import io
import os
import platform
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.utils
import execution
import folder_paths
import psutil
from PIL import Image, UnidentifiedImageError

import nodes
import workflow
from comfy_server import refusal
from headless import Executor, place
from pack import find_host

from .binding import names, title
from .table import TableError

FOLDERS = "input", "output", "temp"
TIDY = 10.0  # seconds between two collections of garbage, as in the host's own loop


class Worker:
    """packs: files or folders of further custom nodes. pictures: titles of the nodes whose pictures are kept, all that
    save some if there is none. form: of the pictures' files, png or webp."""

    def __init__(self, packs=(), pictures=(), form="png"):
        self.kept, self.form = set(pictures), form
        self.base = Path(tempfile.mkdtemp(prefix="palimpsest-batch-"))
        for kind in FOLDERS:
            (self.base / kind).mkdir()
            getattr(folder_paths, f"set_{kind}_directory")(str(self.base / kind))
        self.server = host_nodes(packs)
        comfy.utils.set_progress_bar_enabled(False)
        self.server.client_id, self.server.send_sync = None, lambda *args: None  # nobody is connected
        self.executor, self.tidied = Executor(self.server), time.monotonic()

    def close(self):
        shutil.rmtree(self.base, ignore_errors=True)

    def __call__(self, graph: dict, pictures: dict) -> dict:
        """What became of a row. pictures: {name: bytes} that the worker does not have yet."""
        begun = time.perf_counter()
        with counted() as passes:
            found = self._run(graph, pictures)
        self._tidy(graph)
        return found | {"seconds": time.perf_counter() - begun, "evaluations": passes[0], **whereabouts()}

    def check(self, graph: dict, pictures: dict) -> tuple:
        """(what the host has against a workflow, or "", and the nodes to run)."""
        for name, data in pictures.items():
            (self.base / "input" / name).write_bytes(data)
        valid, error, outputs, wrong = asyncio.run(execution.validate_prompt("batch", graph, None))
        # Where some outputs are fine the host would run those alone.
        return "" if valid and not wrong else refusal({"error": error or {}, "node_errors": wrong}), outputs

    def _run(self, graph, pictures) -> dict:
        refused, outputs = self.check(graph, pictures)
        if refused:
            return failure(refused, "the workflow", "validation")
        self.executor.host.execute(graph, "batch", {}, outputs)
        if not self.executor.host.success:
            event, data = self.executor.host.status_messages[-1]
            return failure(str(data.get("exception_message", event)).strip(), title(graph, data["node_id"]),
                           str(data.get("exception_type", event)))
        shown = self.executor.host.history_result["outputs"]
        cached = self.executor.cached()
        return {"error": "", "node": "", "exception": "", "numbers": numbers(graph, shown),
                "pictures": kept_pictures(graph, shown, self.kept, self.form, place),
                "inverted": any(gives_inversion(graph[n]["class_type"]) for n in graph.keys() - cached)}

    def _tidy(self, graph):
        """Delete files that nothing needs any more, and what Python holds in circles."""
        shown = getattr(self.executor.host, "history_result", {"outputs": {}})["outputs"]
        tidied(self.base, graph, shown, place)
        if time.monotonic() > self.tidied + TIDY:
            gc.collect()
            comfy.model_management.soft_empty_cache()
            self.tidied = time.monotonic()


def host_nodes(packs=()):
    """Register the nodes of the host, of this pack and of further packs. Returns a server object that serves nobody."""
    server = workflow.host_nodes()
    paths = find_host() / "extra_model_paths.yaml"
    if paths.is_file():
        from utils.extra_config import load_extra_path_config  # the host's, once `host_nodes` put it first
        load_extra_path_config(str(paths))
    for pack in packs:
        if not asyncio.run(nodes.load_custom_node(str(pack))):
            raise TableError(f"the node pack {pack} cannot be loaded: try --isolate, which starts a whole ComfyUI")
    return server


def tidied(base: Path, graph: dict, shown: dict, place):
    """Delete what stands in a worker's folders, but for the files that a workflow loads and those that a cached node
    can still show. place(image): its file."""
    named = {v for node in graph.values() for v in node["inputs"].values() if isinstance(v, str)}
    for file in (base / "input").iterdir():
        if file.is_file() and file.name not in named:
            file.unlink()
    live = {place(i) for ui in shown.values() for i in ui.get("images", ())}
    for kind in FOLDERS[1:]:
        for file in (base / kind).rglob("*"):
            if file.is_file() and file not in live:
                file.unlink()


def failure(error: str, node: str, exception: str) -> dict:
    return {"error": error, "node": node, "exception": exception, "pictures": {}, "numbers": {}, "inverted": False}


def whereabouts() -> dict:
    """Where a row ran, and the memory that its process holds, in bytes."""
    return {"worker": os.getpid(), "machine": platform.node(), "memory": psutil.Process().memory_info().rss}


@contextmanager
def counted():
    """Counts the rows that go through any model's network in its first entry."""
    passes, model = [0], comfy.model_base.BaseModel
    apply = model.apply_model

    def counting(self, x, *args, **kwargs):
        passes[0] += len(x)
        return apply(self, x, *args, **kwargs)

    model.apply_model = counting
    try:
        yield passes
    finally:
        model.apply_model = apply


def kept_pictures(graph: dict, shown: dict, kept: set, form: str, place) -> dict:
    """{name: files' bytes} of the nodes that are kept, or of all that save pictures, in the workflow's order.
    place(image): its file."""
    found = {}
    for node, name in names(graph).items():
        files = [i for i in shown.get(node, {}).get("images", ())
                 if (title(graph, node) in kept if kept else i["type"] == "output")]
        if files:
            found[name] = [encoded(place(i).read_bytes(), form) for i in files]
    return found


def encoded(data: bytes, form: str) -> bytes:
    """A picture's file in another form, with the settings for high quality. A video stays as it is."""
    if form == "png":
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if getattr(image, "is_animated", False):
                return data
            file = io.BytesIO()
            image.save(file, form, quality=95)
    except UnidentifiedImageError:
        return data
    return file.getvalue()


def numbers(graph: dict, shown: dict) -> dict:
    """{node's name: {name: number}} of the texts that nodes show as lines `name: number unit`."""
    found = {}
    for node, called in names(graph).items():
        for line in "\n".join(map(str, shown.get(node, {}).get("text", ()))).splitlines():
            name, colon, value = line.partition(": ")
            try:
                found.setdefault(called, {})[name] = float(value.split()[0].rstrip("%"))
            except (ValueError, IndexError):
                continue
    return {name: values for name, values in found.items() if values}


def gives_inversion(kind: str) -> bool:
    return "INVERSION" in getattr(nodes.NODE_CLASS_MAPPINGS.get(kind), "RETURN_TYPES", ())
