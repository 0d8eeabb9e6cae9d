"""The pack and the real host, loaded once for the whole run."""
import functools
import gc
import logging
import sys
from pathlib import Path

import psutil
import pytest

from pack import ROOT, load_pack

try:
    load_pack()
except RuntimeError as error:
    pytest.exit(str(error), returncode=4)

PATHS = sys.path[:]
import comfy_extras.nodes_custom_sampler  # noqa: E402  after the host has read its options
import comfy_extras.nodes_freelunch  # noqa: E402
import comfy_extras.nodes_model_downscale  # noqa: E402

sys.path[:] = PATHS  # an older host puts a folder of its own first
import torch  # noqa: E402
from comfy_api.latest import io  # noqa: E402

torch.set_num_threads(1)
# the host reads it in every attention, which took a twentieth of all tests' time
free_memory = psutil.virtual_memory = functools.cache(psutil.virtual_memory)


def _execute(cls, *args, **kwargs):
    return io.NodeOutput(*getattr(cls(), cls.FUNCTION)(*args, **kwargs))


for module in (comfy_extras.nodes_custom_sampler, comfy_extras.nodes_freelunch, comfy_extras.nodes_model_downscale):
    for node in vars(module).values():
        if hasattr(node, "FUNCTION") and not hasattr(node, "execute"):
            node.execute = classmethod(_execute)  # an older host's node, called as today's

LONG = "batch", "nodes", "tools"
FAST = 3  # tests of a file: two minutes on two cores


class RootIsNoTestPackage:
    """The pack's `__init__.py` belongs to `palimpsest`. pytest would import it again under the folder's name."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path.resolve() == ROOT else None


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help=f"the first {FAST} tests of every file, one case of each")


def pytest_configure(config):
    config.pluginmanager.register(RootIsNoTestPackage())


def pytest_collection_modifyitems(config, items):
    """The rooms with the longest files come first, so that no worker has one left at the end. Every technique has a
    file of its own, whose first tests are the ones that matter most."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    if not config.getoption("--fast"):
        return
    first_cases = {}
    for item in items:
        first_cases.setdefault(item.path, {}).setdefault(item.originalname, item)
    kept = [item for cases in first_cases.values() for item in list(cases.values())[:FAST]]
    config.hook.pytest_deselected(items=[*set(items).difference(kept)])
    items[:] = kept


def pytest_collection_finish():
    """What is loaded by now stays. Without it each of the host's garbage collections takes most of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # by itself Python collects a hundred times a second


def pytest_runtest_setup():
    free_memory.cache_clear()


@pytest.fixture
def said(caplog):
    """Returns the pack's own warnings since the last call, without the host's log."""
    def texts():
        found = [r.getMessage() for r in caplog.records if r.name == "palimpsest" and r.levelno >= logging.WARNING]
        caplog.clear()
        return found
    return texts


@pytest.fixture
def split(monkeypatch):
    """Makes the host run every cond entry in its own forward, as for lack of memory."""
    return lambda case: monkeypatch.setattr(case.model.model, "memory_usage_factor", 1e15)
