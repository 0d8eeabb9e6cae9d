"""The nodes' texts on the canvas, in English from their own schemas, and what the other languages lack.

Run as a script it writes locales/en/nodeDefs.json again. A translation whose English has changed or no longer exists
is removed from the other languages. Missing translations are printed. The canvas shows such a text in English until
someone translates it. COMFYUI_PATH names the host.
"""
import asyncio
import json
import logging
import sys

from canvas import declared
from pack import ROOT, load_pack

FOLDER, PAGES = ROOT / "locales", ROOT / "web" / "docs"
HOST_TYPES = {"MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "SIGMAS", "SAMPLER", "CONDITIONING",
              "CLIP_VISION_OUTPUT", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}


def infos() -> list:
    """The host's /object_info of each of the pack's nodes."""
    import palimpsest
    return [node.GET_NODE_INFO_V1() for node in asyncio.run(asyncio.run(palimpsest.comfy_entrypoint()).get_node_list())]


def english() -> dict:
    """The nodes' own texts, as the frontend reads them from nodeDefs.json."""
    return {info["name"]: _texts(info) for info in infos()}


def names() -> dict:
    """The pack's own categories and types, which a language names in its main.json."""
    nodes = infos()
    types = {kind for info in nodes for _, kind, *_ in declared(info)} | {o for info in nodes for o in info["output"]}
    return {"nodeCategories": {part for info in nodes for part in info["category"].split("/")},
            "dataTypes": types - HOST_TYPES}


def owed(language: str) -> list:
    """What a language lacks, one line each: texts, names of categories and types, help pages."""
    have, main = flat(read(language)), read(language, "main")
    return [*(f"{key}: {text}" for key, text in flat(english()).items() if key not in have),
            *(f"main.json: {part}.{name}" for part, found in names().items()
              for name in sorted(found - main.get(part, {}).keys())),
            *(f"web/docs/{node}/{language}.md" for node in english()
              if not (PAGES / node / f"{language}.md").is_file())]


def _texts(info):
    tips = info.get("output_tooltips") or [None] * len(info["output"])
    found = {"display_name": info["display_name"], "description": info["description"],
             "inputs": {name: _named(options.get("display_name") or name, options.get("tooltip"))
                        for name, _, options, _ in declared(info)},
             "outputs": {str(i): _named(name, tip) for i, (name, tip) in enumerate(zip(info["output_name"], tips))}}
    return {part: text for part, text in found.items() if text}


def _named(name, tooltip):
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def flat(defs, *path) -> dict:
    """{"node.inputs.name.tooltip": text} of a nodeDefs.json."""
    if isinstance(defs, str):
        return {".".join(path): defs}
    return {key: text for part, inner in defs.items() for key, text in flat(inner, *path, part).items()}


def kept(words, old, new):
    """The parts of `words`, a translation of `old`, whose English is the same in `new`, in new's order."""
    if isinstance(new, str):
        return words if old in (None, new) else None
    inner = {part: kept(words[part], (old or {}).get(part), text) for part, text in new.items() if part in words}
    return {part: text for part, text in inner.items() if text}


def read(language: str, name: str = "nodeDefs") -> dict:
    path = FOLDER / language / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(language: str, defs: dict):
    text = json.dumps(defs, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / language / "nodeDefs.json").write_text(text, encoding="utf-8")


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    old, new = read("en"), english()
    new = {node: new[node] for node in dict.fromkeys([*old, *new]) if node in new}  # nodes keep their places
    write("en", new)
    for language in sorted({folder.name for folder in FOLDER.iterdir()} - {"en"}):
        words = read(language)
        now = kept(words, old, new)
        write(language, now)
        for key, text in flat(words).items():
            if key not in flat(now):
                print(f"{language}: {'outdated' if key in flat(new) else 'unused'}, removed: {key}: {text}")
        for line in owed(language):
            print(f"{language}: missing: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
