"""Every template as a new user meets it: opened from the template browser, run by the button.

Pictures of both go into output/tour, and a line of each template says how it ended. One that asks for a checkpoint
opens as it is and runs on the miniature. COMFYUI_PATH names the host. Give names of workflows to see only these.
"""
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from browser import LAPTOP, frontend
from comfy_server import Server, free_port
from pack import ROOT, find_host, load_pack
from thumbnails import drawn_small
from workflow import FOLDER, drawings, host_nodes, object_info

OUT = ROOT / "output" / "tour"


def files(graph):
    """(folder, name) of each model that a template asks for."""
    return {(model["directory"], model["name"]) for node in graph["nodes"]
            for model in node.get("properties", {}).get("models", ())}


def met(view, name: str, small: "dict | None") -> bool:
    """Opens a template and runs it, or `small` in its place. Returns whether both went without an error."""
    page = view.page
    page.set_default_timeout(1_200_000)  # one of them learns for minutes

    def seen(title):
        page.mouse.move(1000, LAPTOP[1] - 20)  # no tooltip
        page.wait_for_timeout(4000)
        page.screenshot(path=str(OUT / f"{title}.png"))

    view.choose(name)
    seen(name)
    zoom, begun = page.evaluate("app.canvas.ds.scale"), time.monotonic()
    if small:
        page.evaluate("graph => app.loadGraphData(graph)", small)
    end = view.run()["kind"]
    print(f"{name}: zoom {zoom:.2f}, {end} after {time.monotonic() - begun:.0f} s", *view.errors, flush=True)
    seen(f"{name}, run")
    return end == "execution_success" and not view.errors


def main(names) -> int:
    logging.disable(logging.WARNING)
    load_pack()
    host_nodes()
    info, shown = object_info(), drawings()
    saved = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in names or shown}
    failed = []
    OUT.mkdir(parents=True, exist_ok=True)
    for name, graph in saved.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:  # each has a new user
            for folder, model in files(graph):
                place = Path(base) / "models" / folder / model
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            with (Server(find_host(), Path(sys.executable), Path(base), free_port(), log=OUT / "log") as server,
                  frontend(server, *LAPTOP) as view):
                if not met(view, name, drawn_small(shown[name], info) if files(graph) else None):
                    failed.append(name)
    print(f"{len(saved) - len(failed)} of {len(saved)} opened and ran; their pictures are in {OUT}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
