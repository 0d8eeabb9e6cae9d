"""The workflows that come with the pack, drawn by the showcase. Run as a script it writes workflows/*.json again.

COMFYUI_PATH names the host, whose nodes check the drawings.
"""
import asyncio
import json
import logging
import sys

from canvas import Canvas
from pack import ROOT, find_host, load_pack

FOLDER, FOLDED = ROOT / "workflows", ROOT / "subgraphs"
MAIN = "Change a word, step by step (Prompt-to-Prompt)"  # which other tools open, as the next
MAPS = "Mask from words (Attention Maps)"


def host_nodes():
    """Register the host's nodes and the pack's in this process. Returns a server object that serves nobody."""
    import palimpsest

    import nodes
    sys.path.insert(0, str(find_host()))  # an older `nodes` puts a folder with another `utils` before it
    import server

    async def register():
        made = server.PromptServer(asyncio.get_running_loop())
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        extension = await palimpsest.comfy_entrypoint()
        for node in await extension.get_node_list():
            schema = node.GET_SCHEMA()
            nodes.NODE_CLASS_MAPPINGS[schema.node_id] = node
            nodes.NODE_DISPLAY_NAME_MAPPINGS[schema.node_id] = schema.display_name
        return made

    return asyncio.run(register())


def object_info() -> dict:
    """The host's /object_info for every registered node: its inputs and outputs."""
    import nodes
    titles = nodes.NODE_DISPLAY_NAME_MAPPINGS
    return {name: _info(node, titles.get(name, name)) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}


def _info(node, title):
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {"input": inputs, "input_order": {part: list(of) for part, of in inputs.items()}, "display_name": title,
            "output": node.RETURN_TYPES, "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES)}


def drawings() -> dict:
    """{title: the example's workflow}."""
    from palimpsest.showcase import collected
    return {workflow.title: workflow for workflow in collected("workflows")}


def drawn(workflow, info: dict) -> str:
    """A workflow's file."""
    c = Canvas(info, workflow.title)
    workflow.draw(c)
    return written(c)


def blueprints() -> dict:
    """{title: the example's blueprint}."""
    from palimpsest.showcase import collected
    return {blueprint.title: blueprint for blueprint in collected("blueprints")}


def folded(blueprint, info: dict) -> str:
    """A blueprint's file: a workflow of it alone."""
    c = Canvas(info, blueprint.title)
    c.column(400)
    c.folded(blueprint)
    return written(c)


def written(c: Canvas) -> str:
    return json.dumps(c.json(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    host_nodes()
    info = object_info()
    for folder, examples, draw in (FOLDER, drawings(), drawn), (FOLDED, blueprints(), folded):
        folder.mkdir(exist_ok=True)
        for title, example in examples.items():
            (folder / f"{title}.json").write_text(draw(example, info), encoding="utf-8")
            print(folder / f"{title}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
