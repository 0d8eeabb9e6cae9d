"""Palimpsest: editing pictures by inversion, as nodes for ComfyUI."""
from comfy_api.latest import ComfyExtension

from .host.canvas import watch_queue
from .host.concept_files import register_folders
from .nodes import found

WEB_DIRECTORY = "./web"


class Palimpsest(ComfyExtension):
    async def get_node_list(self):
        return found()


async def comfy_entrypoint():
    watch_queue()
    register_folders()
    return Palimpsest()
