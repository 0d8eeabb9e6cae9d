"""The pictures of the nodes' help pages, drawn by the showcase on the miniature: web/docs/<node>/example.jpg.

COMFYUI_PATH names the host. Give ids of nodes, with or without their "Palimpsest", to draw only these.
"""
import logging
import sys
import tempfile

from canvas import Canvas, to_api
from pack import ROOT, load_pack
from workflow import host_nodes, object_info

PLACE = ROOT / "web" / "docs"
WIDE, REDUCED = 640, .75  # a picture's greatest width in px, and the greatest share of its drawn size


def sketch(node, draw, info) -> Canvas:
    """The canvas whose run gives the picture of a node's page."""
    c = Canvas(info, node)
    draw(c, info[node]["display_name"].split(" (")[0])
    return c


def page(run, node, draw, info):
    """The picture of a node's page: the sketch's titled pictures as tiles, or else its last picture."""
    import numpy as np
    import torch
    from palimpsest.metrics.drawing import sheet, tile
    from PIL import Image

    from headless import place
    ui = sketch(node, draw, info).json()
    graph = to_api(ui, info)
    if not run(graph):
        raise SystemExit(f"{node}: {run.host.status_messages[-1][1]['exception_message']}")
    images = {key: [np.asarray(Image.open(place(image))) for image in shown["images"]]
              for key, shown in run.host.history_result["outputs"].items() if "images" in shown}
    titles = {str(n["id"]): n["title"] for n in ui["nodes"] if "title" in n}
    tiles = [tile(torch.from_numpy(images[key][0] / 255), titles[key]) for key in graph
             if key in titles and key in images]
    if tiles:
        whole = (sheet([tiles])[0].numpy() * 255).round().astype(np.uint8)
    else:
        *_, (whole, *_) = images.values()  # the last node's
    share = min(REDUCED, WIDE / whole.shape[1])
    return Image.fromarray(whole).resize([round(share * s) for s in whole.shape[1::-1]], Image.Resampling.LANCZOS)


def main(names) -> int:
    logging.disable(logging.WARNING)
    load_pack()
    server = host_nodes()
    server.client_id, server.send_sync = None, lambda *args: None  # nobody is connected
    import folder_paths
    from palimpsest.showcase import pages

    from headless import Executor
    info, run, drawn = object_info(), Executor(server), pages()
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        for node in [f"Palimpsest{name.removeprefix('Palimpsest')}" for name in names] or drawn:
            file = PLACE / node / "example.jpg"
            page(run, node, drawn[node], info).save(file, quality=85)
            print(file, file.stat().st_size, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
