"""Prompts run on the host's own executor in this process, and the pictures that their nodes show."""
import asyncio
import inspect
from pathlib import Path

import execution
import folder_paths
import numpy as np
from PIL import Image


class Executor:
    """The host's executor. It caches results between runs, as a server does."""

    def __init__(self, server):
        known = inspect.signature(execution.PromptExecutor).parameters  # older hosts name this argument otherwise
        cache = {"cache_args": {"ram": 0, "ram_inactive": 0, "lru": 0}} if "cache_args" in known else {"cache_size": 0}
        self.host = execution.PromptExecutor(server, cache_type=execution.CacheType.CLASSIC, **cache)

    def __call__(self, graph, prompt="test", client=None):
        valid, error, outputs, _ = asyncio.run(execution.validate_prompt(prompt, graph, None))
        assert valid, error
        self.host.execute(graph, prompt, {} if client is None else {"client_id": client}, outputs)
        return self.host.success

    def cached(self):
        return {n for event, data in self.host.status_messages if event == "execution_cached" for n in data["nodes"]}

    def pictures(self, graph):
        """{title of a node: the pixels that it showed or saved}."""
        shown, meta = self.host.history_result["outputs"], self.host.history_result["meta"]
        return {graph[meta[node]["display_node"]]["_meta"]["title"]:
                [np.asarray(Image.open(place(image))) for image in shown[node]["images"]]
                for node in shown if "images" in shown[node]}


def place(image):
    return Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"])
