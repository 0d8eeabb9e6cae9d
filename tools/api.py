"""The workflow that docs/api.md posts: a word of a photo is changed. Run as a script it writes docs/api.json.

COMFYUI_PATH names the host, whose nodes fill in what is not said here.
"""
import json
import logging
import sys

from canvas import Canvas, to_api
from pack import ROOT, load_pack
from workflow import host_nodes, object_info

PATH = ROOT / "docs" / "api.json"


def draw(c: Canvas):
    model = c.node("PalimpsestLoadMiniature", "model")
    photo = c.node("LoadImage", "photo", image="photo.png")
    sized = c.node("PalimpsestModelSize", "size", model=model["MODEL"], image=photo["IMAGE"])
    # of its own, because the host inverts again when anything before the inversion changes, the target too
    shown = c.node("PalimpsestPromptEdit", "shown", clip=model["CLIP"], source="", target="")
    words = c.node("PalimpsestPromptEdit", "words", clip=model["CLIP"], source="", target="")
    negative = c.node("CLIPTextEncode", "negative", clip=model["CLIP"], text="")
    encoded = c.node("VAEEncode", "encoded", pixels=sized["IMAGE"], vae=model["VAE"])
    inversion = c.node("PalimpsestDDIMInvert", "inversion", model=model["MODEL"], source=shown["source"],
                       latent=encoded["LATENT"])
    maps = c.node("PalimpsestAttentionStore", "maps", model=model["MODEL"], inversion=inversion["inversion"],
                  prompt_edit=shown["prompt edit"])
    mask = c.node("PalimpsestAttentionMask", "mask", attention=maps["ATTENTION"], words="", grow=1,
                  image=sized["IMAGE"])
    edit = c.node("PalimpsestAttentionInject", "edit", model=model["MODEL"], inversion=inversion["inversion"],
                  prompt_edit=words["prompt edit"], self_end=0.8, self_resolution=1.0)
    blend = c.node("PalimpsestLatentBlend", "blend", model=edit["MODEL"], inversion=inversion["inversion"],
                   mask=mask["MASK"])
    start = c.node("PalimpsestReplay", "start", model=blend["MODEL"], inversion=inversion["inversion"])
    sampled = c.node("SamplerCustom", "sample", model=start["model"], positive=words["target"],
                     negative=negative["CONDITIONING"], sampler=start["sampler"], sigmas=start["sigmas"],
                     latent_image=start["latent"], add_noise=False, noise_seed=0, cfg=3.0)
    decoded = c.node("VAEDecode", "decoded", samples=sampled["output"], vae=model["VAE"])
    kept = c.node("ImageCompositeMasked", "kept", destination=photo["IMAGE"], source=decoded["IMAGE"],
                  resize_source=True, mask=mask["MASK"])
    c.node("SaveImage", "saved", images=kept["IMAGE"], filename_prefix="palimpsest/edited")


def named(graph: dict) -> dict:
    """The prompt with each node's title as its id."""
    titles = {number: node["_meta"]["title"] for number, node in graph.items()}

    def renamed(value):
        return [titles[value[0]], value[1]] if isinstance(value, list) else value
    return {titles[number]: {"class_type": node["class_type"],
                             "inputs": {name: renamed(value) for name, value in node["inputs"].items()}}
            for number, node in graph.items()}


def made(info: dict) -> str:
    """The file, a node a line."""
    c = Canvas(info, "api")
    c.column()
    draw(c)
    nodes = named(to_api(c.json(), info)).items()
    return "{\n" + ",\n".join(f' "{name}": {json.dumps(node)}' for name, node in nodes) + "\n}\n"


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    host_nodes()
    PATH.write_text(made(object_info()), encoding="utf-8")
    print(PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
