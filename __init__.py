"""Palimpsest: editing pictures by inversion, as nodes for ComfyUI."""
from comfy_api.latest import ComfyExtension

from .nodes import attention, blending, inversion, miniature, prompt, report

WEB_DIRECTORY = "./web"


class Palimpsest(ComfyExtension):
    async def get_node_list(self):
        return [node for family in (miniature, prompt, inversion, attention, blending, report) for node in family.NODES]


async def comfy_entrypoint():
    return Palimpsest()
