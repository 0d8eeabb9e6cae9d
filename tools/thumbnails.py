"""The template browser's pictures of the small workflows: each workflow is run, and its edit put beside its source.

COMFYUI_PATH names the host. Give names of workflows to draw only these.
"""
import json
import logging
import sys
import tempfile

from canvas import to_api
from pack import load_pack
from workflow import FOLDER, drawings, host_nodes, object_info

SIDE, GAP = 300, 8


def main(names) -> int:
    logging.disable(logging.WARNING)
    load_pack()
    server = host_nodes()
    server.client_id, server.send_sync = None, lambda *args: None  # nobody is connected
    import folder_paths
    import numpy as np
    from palimpsest.miniature.scenes import held_out_edit
    from palimpsest.showcase.drawing import Workflow
    from PIL import Image

    from headless import Executor
    info, small = object_info(), {name: w for name, w in drawings().items() if isinstance(w, Workflow)}
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        for name in names or small:
            graph = to_api(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), info)
            run = Executor(server)
            if not run(graph):
                raise SystemExit(f"{name}: {run.host.status_messages[-1]}")
            source = held_out_edit(small[name].seed, small[name].kind).source_image
            page = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
            for i, pixels in enumerate(((source * 255).round().astype(np.uint8), run.pictures(graph)["Save Image"][0])):
                page.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
                           (i * (SIDE + GAP), 0))
            page.save(FOLDER / f"{name}.jpg", quality=88)
            print(FOLDER / f"{name}.jpg", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
