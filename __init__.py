"""Palimpsest: editing pictures by inversion, as nodes for ComfyUI."""
from importlib import import_module

from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"
FAMILIES = ("miniature", "prompt", "inversion", "exact", "refine", "regularized", "null_text", "tuning", "storage",
            "attention", "features", "sharing", "blending", "masks", "guidance", "semantic", "excite", "objects", "report",
            "inversion_report")


class Palimpsest(ComfyExtension):
    async def get_node_list(self):
        return [node for family in FAMILIES for node in import_module(f"{__name__}.nodes.{family}").NODES]


async def comfy_entrypoint():
    import_module(f"{__name__}.host.canvas").watch_queue()
    return Palimpsest()
