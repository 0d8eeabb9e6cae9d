"""The workflows that come with the pack, drawn from code. Run as a script it writes workflows/*.json again.

COMFYUI_PATH names the host whose nodes the drawings are checked against.
"""
import asyncio
import json
import logging
import sys

from canvas import Canvas
from pack import ROOT, find_host, load_pack
from parts import BLUE, BROWN, CFG, GREEN, KEEPS, VIOLET, YELLOW, picture_and_words, replay
from techniques import TECHNIQUES

FOLDER = ROOT / "workflows"
MAIN, MAPS = "Rewrite a word, keep the rest", "Attention maps to a mask"
SCENE = {"seed": 12, "kind": "colour"}
WORDS, SEEN = "star", "green, dotted, star, sky, background"

ABOUT_MAIN = """2. *Prompt Edit*: as source, write what the picture **shows**; as target, the same \
sentence with a word rewritten, added or taken out.
3. *Words that may change*: what the edit may write over, in words of the source. The mask follows them.
4. Set what was chosen for the miniature back to the papers' values: CFG 7.5 in *Sample the edit*; `self_end` 0.4 and \
`self_resolution` 0.5 in *Attention Inject*.
5. To change a **shape**, lower `cross_end` to 0.4 and `self_end` to 0.2; to keep more, raise them.
6. *Edit Report*: leave `target` and `mask` open; only the miniature knows the true answer.

As it stands it runs on the small model that comes with the pack, in seconds."""

ABOUT_MAPS = """2. *Prompt Edit*: as source, write what the picture **shows**. The target plays no part.
3. *Attention Mask*: name words of the source. `threshold` 0 is found by itself, higher is tighter; `grow` and `blur` soften the edge, in \
cells of the latent.

The mask goes to any node that takes one: *Latent Blend (Inversion)*, *ImageCompositeMasked*, \
*Set Latent Noise Mask*."""


def changed_words(edit) -> str:
    """What an edit of a scene writes over, in words of its source: the objects it changes, the ground, or all."""
    source, target = edit.source, edit.target
    shapes = [o.shape for o in source.objs]
    nouns = [f"{o.shape}#{shapes[:i + 1].count(o.shape)}" if shapes.count(o.shape) > 1 else o.shape
             for i, o in enumerate(source.objs) if o not in target.objs or source.style != target.style]
    return ", ".join(nouns if nouns and source.style == target.style else [*nouns, source.ground, "background"])


def shown_words(text: str) -> str:
    """The words of a caption that carry its meaning, five at most."""
    return ", ".join([w for w in dict.fromkeys(text.split()) if w not in ("a", "photo", "of", "on", "and")][:5])


def host_nodes():
    """Register the host's nodes and the pack's in this process; returns its server object, which serves nobody."""
    import nodes
    import palimpsest
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
    """What the host's /object_info says of a node's inputs and outputs, for every registered node."""
    import nodes
    titles = nodes.NODE_DISPLAY_NAME_MAPPINGS
    return {name: _info(node, titles.get(name, name)) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}


def _info(node, title):
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {"input": inputs, "input_order": {part: list(of) for part, of in inputs.items()}, "display_name": title,
            "output": node.RETURN_TYPES, "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES)}


def main_job(info: dict) -> dict:
    """Rewrite a word of a picture's prompt and keep everything else, pixels outside the mask exactly."""
    c = Canvas(info, MAIN)
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT_MAIN, 500, SCENE)
        loader, words = p.loader, p.words
        null = c.node("CLIPTextEncode", "Null prompt", clip=loader["CLIP"], text="")
    with c.group("2  Invert, and back as it was", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=loader["MODEL"], source=words["source"],
                           latent=p.encoded["LATENT"])
        again = replay(c, "Sample the source again", loader["MODEL"], inversion, words["source"],
                       null["CONDITIONING"], 1.0)
        replayed = c.node("VAEDecode", "Reconstruction", samples=again["output"], vae=loader["VAE"])
    with c.group("3  See where words lie", VIOLET):
        c.column(290)
        attention = c.node("PalimpsestAttentionStore", model=loader["MODEL"], inversion=inversion["inversion"],
                           prompt_edit=words["prompt edit"])
        named = c.node("PrimitiveString", "Words that may change", value=WORDS)
        c.column(640)
        c.node("PalimpsestAttentionHeatmap", None, 200, attention=attention["ATTENTION"], image=p.picture,
               words=SEEN)
        mask = c.node("PalimpsestAttentionMask", None, 240, attention=attention["ATTENTION"], words=named["STRING"],
                      grow=1, blur=0.5, image=p.picture)
    with c.group("4  Edit", BROWN):
        c.column(290)
        injected = c.node("PalimpsestAttentionInject", model=loader["MODEL"], inversion=inversion["inversion"],
                          prompt_edit=words["prompt edit"], **KEEPS)
        blended = c.node("PalimpsestLatentBlend", model=injected["MODEL"], inversion=inversion["inversion"],
                         source_words=named["STRING"], attention=attention["ATTENTION"])
        edited = replay(c, "Sample the edit", blended["MODEL"], inversion, words["target"], null["CONDITIONING"], CFG)
        decoded = c.node("VAEDecode", "Edited", samples=edited["output"], vae=loader["VAE"])
        c.column(290)
        kept = c.node("ImageCompositeMasked", "Keep pixels outside the mask", destination=p.picture,
                      source=decoded["IMAGE"], mask=mask["MASK"])
        c.node("SaveImage", None, 300, images=kept["IMAGE"], filename_prefix="palimpsest/edited")
    with c.group("5  Compare", YELLOW):
        c.column(760)
        for when, picture in (("before", decoded), ("after", kept)):
            c.node("PalimpsestEditReport", f"Edit Report {when} compositing", 210, source=p.picture,
                   edited=picture["IMAGE"], reconstruction=replayed["IMAGE"], target=p.scene["exact target"],
                   mask=p.mask)
    return c.json()


def maps_to_a_mask(info: dict) -> dict:
    """Where a model sees each word of a picture's prompt, and a mask from that."""
    c = Canvas(info, MAPS)
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT_MAPS, 480, SCENE, target=False)
        loader, words = p.loader, p.words
    with c.group("2  Invert", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=loader["MODEL"], source=words["source"],
                           latent=p.encoded["LATENT"])
        attention = c.node("PalimpsestAttentionStore", model=loader["MODEL"], inversion=inversion["inversion"],
                           prompt_edit=words["prompt edit"])
    with c.group("3  See, and mask", VIOLET):
        c.column(720)
        c.node("PalimpsestAttentionHeatmap", None, 280, attention=attention["ATTENTION"], image=p.picture,
               words=SEEN)
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 280, attention=attention["ATTENTION"], words=WORDS,
                      grow=1, blur=0.5, image=p.picture)
        c.column(290)
        c.node("MaskPreview", "The mask", 280, mask=mask["MASK"])
    return c.json()


DRAWN = {MAIN: main_job, MAPS: maps_to_a_mask, **TECHNIQUES}


def text(ui: dict) -> str:
    return json.dumps(ui, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    host_nodes()
    info = object_info()
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (FOLDER / f"{name}.json").write_text(text(draw(info)), encoding="utf-8")
        print(FOLDER / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
