"""The template browser's pictures: a workflow's source, what the sampler makes of the same prompt and the same noise
without the editor, the edit, and what it changed, or the other picture that it takes. A workflow that is no edit says
what it shows instead.

COMFYUI_PATH names the host. Give names of workflows to draw only these.
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


def drawn_small(workflow, info: dict) -> dict:
    """The canvas of a workflow on the miniature."""
    from palimpsest.showcase.folds import Start
    small = replace(workflow, small=True).draw if isinstance(workflow, Start) else getattr(workflow, "small", None)
    canvas = Canvas(info, workflow.title)
    (small or workflow.draw)(canvas)
    return json.loads(json.dumps(canvas.json()))


def on_the_miniature(workflow, info: dict) -> dict:
    """The prompt of a workflow on the miniature."""
    return to_api(drawn_small(workflow, info), info)


def unedited(workflow, info: dict) -> dict:
    """The prompt of a workflow without its editors: what is sampled is the model as it was loaded."""
    graph = on_the_miniature(workflow, info)
    sampled = next((found for kind in ("PalimpsestReplay", "SamplerCustom") if (
        found := [n for n, node in graph.items() if node["class_type"] == kind])), None)
    if not sampled:  # the editor gives a LATENT
        from palimpsest.showcase.drawing import inverted
        return on_the_miniature(replace(workflow, invert=inverted, edit=lambda c, p, inversion: p.loader), info)
    loader = next(n for n, node in graph.items() if node["class_type"] == "PalimpsestLoadMiniature")
    alone = {n: node | {"inputs": node["inputs"] | {"model": [loader, 0]}} if n in sampled else node
             for n, node in graph.items()}
    # an edit that was set into its source again is shown before that
    decoded = next((n for n, node in graph.items() if node["_meta"]["title"] == "Edited"
                    and node["class_type"] == "VAEDecode"), None)
    ends = [n for n, node in graph.items() if node["_meta"]["title"] in ENDS and "images" in node["inputs"]]
    for n in ends if decoded else ():
        alone[n] = alone[n] | {"inputs": alone[n]["inputs"] | {"images": [decoded, 0]}}
    return alone


def page(tiles: dict):
    """A picture of labelled pictures: squares two in a row, a wide one in a row of its own."""
    from PIL import Image, ImageDraw, ImageFont
    wide = 2 * SIDE + GAP
    places, x, y = [], 0, 0
    for label, pixels in tiles.items():
        across = SIDE if pixels.shape[0] == pixels.shape[1] else wide
        high = round(across * pixels.shape[0] / pixels.shape[1])
        places.append((label, Image.fromarray(pixels).resize((across, high), Image.Resampling.BICUBIC), x, y))
        x = x + across + GAP if x + across < wide else 0
        y = y if x else y + high + LABEL
    drawn = Image.new("RGB", (wide, max(y + picture.height for _, picture, _, y in places) + LABEL), "white")
    for label, picture, x, y in places:
        drawn.paste(picture, (x, y))
        ImageDraw.Draw(drawn).text((x + picture.width / 2, y + picture.height + LABEL / 2), label, "black",
                                   ImageFont.load_default(15), "mm")
    return drawn


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
    from palimpsest.showcase.drawing import OTHER

    from headless import Executor

    def ran(name, graph) -> dict:
        """By title, the first picture of each node."""
        run = Executor(server)
        if not run(graph):
            raise SystemExit(f"{name}: {run.host.status_messages[-1]}")
        return {title: pictures[0] for title, pictures in run.pictures(graph).items()}

    info, shown = object_info(), drawings()
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        for name in names or shown:
            workflow, graph = shown[name], on_the_miniature(shown[name], info)
            if workflow.scene:
                tiles = {"source": (an_edit(**workflow.scene).source_image * 255).round().astype(np.uint8)}
                found = ran(name, unedited(workflow, info))
                tiles["the prompt alone"] = next(found[title] for title in ENDS if title in found)
                found = ran(name, graph)
                tiles["edited"] = next(found[title] for title in ENDS if title in found)
                difference = torch.tensor(np.abs(tiles["edited"].astype(float) - tiles["source"])).mean(-1)
                changed = {"what changed": (colours(difference / difference.max()) * 255).byte().numpy()}
                tiles |= {OTHER.lower(): found[OTHER]} if OTHER in found else changed
            else:
                found = ran(name, graph)
                tiles = {title: found[title] for title in workflow.shows}
            page(tiles).save(FOLDER / f"{name}.jpg", quality=88)
            print(FOLDER / f"{name}.jpg", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
