"""A worker that starts a ComfyUI server of its own, with all its node packs, and runs rows over the server's API.

For packs that cannot be loaded beside others in a worker's process. Rows cost what a request costs more.
"""
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.parse import quote

import psutil

import comfy_server
from pack import NAME, find_host

from .binding import title
from .worker import failure, kept_pictures, numbers, tidied, whereabouts

POLL = 0.02  # seconds between two questions whether a row is done


class Server:
    """The same as a `worker.Worker`. A server that ends takes this process with it, as a row does there."""

    def __init__(self, packs=(), pictures=(), form="png"):
        self.kept, self.form, self.shown, host = set(pictures), form, {}, find_host()
        self.base = Path(tempfile.mkdtemp(prefix="palimpsest-batch-"))
        (self.base / "custom_nodes").mkdir()
        others = [p for p in (host / "custom_nodes").glob("*") if p.name not in ("__pycache__", NAME)]
        for place in (*others, *map(Path, packs)):
            if place.resolve() != comfy_server.ROOT:
                (self.base / "custom_nodes" / place.name).symlink_to(place)
        if (host / "models").is_dir():
            (self.base / "models").symlink_to(host / "models")
        tied = end_with_parent if sys.platform == "linux" else None  # elsewhere Python takes no such call
        self.server = comfy_server.Server(host, Path(sys.executable), self.base, comfy_server.free_port(), (),
                                          self.base / "log", alone=False, before=tied).__enter__()

    def close(self):
        self.server.__exit__()
        shutil.rmtree(self.base, ignore_errors=True)

    def __call__(self, graph: dict, pictures: dict) -> dict:
        begun = time.perf_counter()
        for name, data in pictures.items():
            (self.base / "input" / name).write_bytes(data)
        found = self._run(graph)
        tidied(self.base, graph, self.shown, self._place)
        memory = psutil.Process(self.server.process.pid).memory_info().rss
        return found | {"seconds": time.perf_counter() - begun, "evaluations": None, **whereabouts(), "memory": memory}

    def _run(self, graph) -> dict:
        answer = self.server.post("/prompt", {"prompt": graph})
        if answer.get("node_errors") or "prompt_id" not in answer:
            return failure(comfy_server.refusal(answer), "the workflow", "validation")
        history = {}
        while not history:
            time.sleep(POLL)
            try:
                history = json.loads(self.server.get(f"/history/{answer['prompt_id']}"))
            except OSError:
                if self.server.process.poll() is not None:
                    print((self.base / "log").read_text(errors="replace")[-2000:], file=sys.stderr, flush=True)
                    os._exit(1)
        ran = history[answer["prompt_id"]]
        self.shown = ran["outputs"]
        told = dict(ran["status"]["messages"])
        if ran["status"]["status_str"] != "success":
            data = told.get("execution_error") or told["execution_interrupted"]
            return failure(str(data.get("exception_message", "interrupted")).strip(), title(graph, data["node_id"]),
                           str(data.get("exception_type", "interrupted")))
        cached = set(told.get("execution_cached", {}).get("nodes", ()))
        return {"error": "", "node": "", "exception": "", "numbers": numbers(graph, ran["outputs"]),
                "pictures": kept_pictures(graph, ran["outputs"], self.kept, self.form, self._place),
                "inverted": any(self._inverts(graph[n]["class_type"]) for n in graph.keys() - cached)}

    def _place(self, image):
        return self.base / image["type"] / image["subfolder"] / image["filename"]

    @cache  # noqa: B019  a worker lives as long as its process
    def _inverts(self, kind) -> bool:
        return "INVERSION" in json.loads(self.server.get(f"/object_info/{quote(kind, safe='')}"))[kind]["output"]


def end_with_parent():
    """Called in a new process: the system ends it when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
