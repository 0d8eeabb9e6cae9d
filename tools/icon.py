"""The registry's icon and banner: pictures that the workflow of docs/api.md edited, the source showing through.

Run as a script it writes docs/icon.png and docs/banner.jpg. COMFYUI_PATH names the host.
"""
import json
import logging
import sys
import tempfile

import numpy as np
from PIL import Image

from api import PATH
from pack import ROOT, load_pack
from workflow import host_nodes

SCENES = [{"seed": seed, "kind": "colour"} for seed in (2, 11, 0)]
SIDE, BANNER = 256, (1260, 540)
SLANT, LINE = 0.25, 0.008  # of the cut between source and edit, as shares of the picture's side


def cut(source: np.ndarray, edited: np.ndarray, centre: tuple, wide: int, high: int) -> Image.Image:
    """The source on the left of a white slanted line through the centre (x, y in 0..1), the edit on its right.

    The picture fills the height. What of it is too wide is left out, with the centre as near to the middle as can be.
    """
    before, after = (np.asarray(Image.fromarray(p).resize((high, high), Image.Resampling.LANCZOS), np.float32)
                     for p in (source, edited))
    y, x = np.mgrid[:high, :high] / high
    side = x - centre[0] + SLANT * (y - centre[1])
    soft = np.clip((np.abs(side) - LINE) * high, 0, 1)[..., None]  # 0 on the line
    page = Image.fromarray((np.where(side[..., None] < 0, before, after) * soft + 255 * (1 - soft)).astype(np.uint8))
    left = min(max(round(centre[0] * high - wide / 2), 0), high - wide)
    return page.crop((left, 0, left + wide, high))


def edit(run, scene: dict) -> tuple:
    """(source, edited, centre of the edit) of a scene of the miniature."""
    from palimpsest.miniature.scenes import held_out_edit

    import demo
    graph, of = json.loads(PATH.read_text(encoding="utf-8")), held_out_edit(**scene)
    graph["photo"] = {"class_type": "PalimpsestMiniatureScene", "inputs": scene}
    graph["shown"]["inputs"].update(source=of.source_text, target=of.source_text)
    graph["words"]["inputs"].update(source=of.source_text, target=of.target_text)
    graph["mask"]["inputs"]["words"] = demo.changed_words(of)
    for name, node in graph.items():
        node["_meta"] = {"title": name}
    assert run(graph), run.host.status_messages[-1]
    y, x = (places.mean() / len(of.mask) for places in np.nonzero(of.mask))
    return np.round(of.source_image * 255).astype(np.uint8), run.pictures(graph)["saved"][0], (x, y)


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    server = host_nodes()
    server.client_id, server.send_sync = None, lambda *args: None  # nobody is connected
    import folder_paths

    from headless import Executor
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        run = Executor(server)
        edits = [edit(run, scene) for scene in SCENES]
    docs = ROOT / "docs"
    cut(*edits[0], SIDE, SIDE).save(docs / "icon.png", optimize=True)
    banner, wide = Image.new("RGB", BANNER), BANNER[0] // len(edits)
    for i, shown in enumerate(edits):
        banner.paste(cut(*shown, wide, BANNER[1]), (i * wide, 0))
    banner.save(docs / "banner.jpg", quality=85, optimize=True)
    print(docs / "icon.png", docs / "banner.jpg", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
