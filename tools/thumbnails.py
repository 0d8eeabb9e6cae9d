"""The template browser's pictures: a workflow's source, what the sampler makes of the same prompt and the same noise
without the editor, the edit, and what it changed.

COMFYUI_PATH names the host. Give names of workflows to draw only these. The rest of the workflows' pictures show heat
maps and are made by hand.
"""
import json
import logging
import sys
import tempfile
from dataclasses import replace

from canvas import Canvas, to_api
from pack import load_pack
from workflow import FOLDER, drawings, host_nodes, object_info

SIDE, GAP, LABEL = 260, 8, 24  # of a tile
ENDS = "Save Image", "Edited"  # titles of the nodes that show an edit


def on_the_miniature(workflow, info: dict):
    """(the prompt of a workflow on the miniature, its scene), or None for a workflow that is no edit."""
    from palimpsest.showcase.drawing import Workflow
    from palimpsest.showcase.folds import Start
    if not isinstance(workflow, Workflow | Start):
        return None
    drawn = replace(workflow, small=True) if isinstance(workflow, Start) else workflow
    canvas = Canvas(info, workflow.title)
    drawn.draw(canvas)
    return to_api(json.loads(json.dumps(canvas.json())), info), workflow.scene


def unedited(graph: dict) -> "dict | None":
    """The prompt without its editors: what is sampled is the model as it was loaded. None where nothing is sampled."""
    loader = next(n for n, node in graph.items() if node["class_type"] == "PalimpsestLoadMiniature")
    sampled = [n for n, node in graph.items() if node["class_type"] == "PalimpsestReplay"]
    alone = {n: node | {"inputs": node["inputs"] | {"model": [loader, 0]}} if n in sampled else node
             for n, node in graph.items()}
    # an edit that was set into its source again is shown before that
    decoded = next((n for n, node in graph.items() if node["_meta"]["title"] == "Edited"
                    and node["class_type"] == "VAEDecode"), None)
    ends = [n for n, node in graph.items() if node["_meta"]["title"] in ENDS and "images" in node["inputs"]]
    for n in ends if decoded else ():
        alone[n] = alone[n] | {"inputs": alone[n]["inputs"] | {"images": [decoded, 0]}}
    return alone if sampled else None


def main(names) -> int:
    logging.disable(logging.WARNING)
    load_pack()
    server = host_nodes()
    server.client_id, server.send_sync = None, lambda *args: None  # nobody is connected
    import folder_paths
    import numpy as np
    import torch
    from palimpsest.metrics.drawing import colours
    from palimpsest.miniature.hard import an_edit
    from PIL import Image, ImageDraw, ImageFont

    from headless import Executor

    def ran(name, graph):
        run = Executor(server)
        if not run(graph):
            raise SystemExit(f"{name}: {run.host.status_messages[-1]}")
        shown = run.pictures(graph)
        return next(shown[title][0] for title in ENDS if title in shown)

    info, shown = object_info(), drawings()
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        for name in names or shown:
            found = on_the_miniature(shown[name], info)
            if not found:
                continue
            graph, scene = found
            tiles = {"source": (an_edit(**scene).source_image * 255).round().astype(np.uint8)}
            if alone := unedited(graph):
                tiles["the prompt alone"] = ran(name, alone)
            tiles["edited"] = ran(name, graph)
            difference = torch.tensor(np.abs(tiles["edited"].astype(float) - tiles["source"])).mean(-1)
            tiles["what changed"] = (colours(difference / difference.max()) * 255).byte().numpy()
            page = Image.new("RGB", (2 * SIDE + GAP, 2 * (SIDE + LABEL)), "white")
            for i, (label, pixels) in enumerate(tiles.items()):
                left, top = i % 2 * (SIDE + GAP), i // 2 * (SIDE + LABEL)
                page.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
                ImageDraw.Draw(page).text((left + SIDE / 2, top + SIDE + LABEL / 2), label, "black",
                                          ImageFont.load_default(15), "mm")
            page.save(FOLDER / f"{name}.jpg", quality=88)
            print(FOLDER / f"{name}.jpg", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
