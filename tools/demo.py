"""Run the main workflow headless on a real ComfyUI server. Pictures and numbers go to output/demo."""
import argparse
import asyncio
import io
import json
import logging
import math
import platform
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import psutil

sys.path.append(str(Path(__file__).resolve().parent))  # the Python of a portable ComfyUI leaves it out
from canvas import to_api
from comfy_server import Server, free_port, refusal
from environment import SetupError, host_version, say
from pack import NAME, ROOT, find_host, load_pack
from workflow import FOLDER, MAIN

OUTPUT = ROOT / "output" / "demo"
# Each picture's node, by title. "decoded" is the edit before compositing, which only the numbers need.
PICTURES = {"source": "Miniature Scene", "reconstruction": "Reconstruction", "decoded": "Edited",
            "edited": "Keep pixels outside the mask", "heatmap": "Attention Heatmap", "mask": "Attention Mask"}
REPORTS = {"before compositing": "Edit Report before compositing", "after compositing": "Edit Report after compositing"}
# For a new colour the workflow keeps every outline. As in the paper, maps are held shorter the more must move.
SURFACE, FORM = {"self_end": 0.4, "self_resolution": 0.5}, {"cross_end": 0.2, "self_end": 0.0}
HOLD = {"background": SURFACE, "style": SURFACE,
        "material": FORM, "object": FORM, "pose": FORM, "add": FORM, "delete": FORM}


def titled(graph: dict, title: str) -> str:
    """The id of the one node with this title."""
    found, = (number for number, node in graph.items() if node["_meta"]["title"] == title)
    return found


def prepare(graph: dict, edit, seed: int, kind: str, steps: int, cfg: float) -> dict:
    """The main workflow's prompt for one edit of one scene. Each picture to keep has a node, named as the picture."""
    values = {"Miniature Scene": {"seed": seed, "kind": kind}, "DDIM Invert": {"steps": steps},
              "Sample the edit": {"cfg": cfg},
              "Words that may change": {"value": changed_words(edit)},
              "Attention Heatmap": {"words": shown_words(edit.source_text)},
              "Attention Inject": HOLD.get(kind, {})}
    for title, inputs in values.items():
        graph[titled(graph, title)]["inputs"].update(inputs)
    kept = {name: [titled(graph, title), 0] for name, title in PICTURES.items()}
    more = {"mask picture": ("MaskToImage", {"mask": kept["mask"]})}
    kept["mask"] = ["mask picture", 0]
    more |= {name: ("SaveImage", {"images": place, "filename_prefix": f"{NAME}/{name}"})
             for name, place in kept.items()}
    return graph | {name: {"class_type": type_, "inputs": inputs, "_meta": {"title": f"keep {name}"}}
                    for name, (type_, inputs) in more.items()}


def changed_words(edit) -> str:
    """What an edit of a scene changes, in words of its source: objects, the ground, or everything."""
    source, target = edit.source, edit.target
    shapes = [o.shape for o in source.objs]
    nouns = [f"{o.shape}#{shapes[:i + 1].count(o.shape)}" if shapes.count(o.shape) > 1 else o.shape
             for i, o in enumerate(source.objs) if o not in target.objs or source.style != target.style]
    return ", ".join(nouns if nouns and source.style == target.style else [*nouns, source.ground, "background"])


def shown_words(text: str) -> str:
    """The words of a caption that carry its meaning, at most five."""
    return ", ".join([w for w in dict.fromkeys(text.split()) if w not in ("a", "photo", "of", "on", "and")][:5])


async def execute(server: Server, graph: dict, watch=lambda: None) -> dict:
    """Queue the prompt, show its progress and return its outputs by node. `watch` is called on each message."""
    client, terminal = uuid.uuid4().hex, sys.stdout.isatty()

    def name(node):
        return graph.get(node, {}).get("_meta", {}).get("title", node)

    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket:
            answer = server.post("/prompt", {"prompt": graph, "client_id": client})
            if answer.get("node_errors") or "prompt_id" not in answer:
                raise SetupError(f"ComfyUI refused the workflow: {refusal(answer)}: see {server.log}")
            async for message in socket:
                watch()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if kind == "executing" and data["node"]:
                    print(f"{chr(10) * terminal}  {name(data['node'])}", end="" if terminal else "\n", flush=True)
                elif kind == "progress" and terminal:
                    print(f"\r  {name(data['node'])} {data['value']}/{data['max']}", end="", flush=True)
                elif kind in ("execution_error", "execution_interrupted"):
                    raise SetupError(f"the workflow failed in {data['node_type']}: "
                                     f"{data.get('exception_message', 'interrupted').strip()}: see {server.log}")
                elif kind == "executing":  # no node: the run has ended and its history is written
                    break
            else:
                raise SetupError(f"ComfyUI stopped during the workflow: see {server.log}")
    print(end="\n" if terminal else "")
    return json.loads(server.get(f"/history/{answer['prompt_id']}"))[answer["prompt_id"]]["outputs"]


class Memory:
    """The peak memory, in bytes, of a process and its children. Each call takes a sample."""

    def __init__(self, pid: int):
        self.process, self.most = psutil.Process(pid), 0

    def __call__(self):
        held = 0
        for process in (self.process, *self.process.children(recursive=True)):
            try:
                held += process.memory_info().rss
            except psutil.NoSuchProcess:
                pass
        self.most = max(self.most, held)


def run(settings: dict, edit) -> "tuple[dict, dict, dict]":
    """(PNG files by the picture's name, each report's numbers, the run's cost)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        say("starting ComfyUI")
        with Server(find_host(), Path(sys.executable), Path(base), free_port(), log=OUTPUT / "server.log") as server:
            ui = json.loads((FOLDER / f"{MAIN}.json").read_text(encoding="utf-8"))
            graph = prepare(to_api(ui, json.loads(server.get("/object_info"))), edit, **settings)
            memory, begun = Memory(server.process.pid), time.monotonic()
            outputs = asyncio.run(execute(server, graph, memory))
            cost = {"seconds": round(time.monotonic() - begun, 1), "peak memory, MB": round(memory.most / 2 ** 20),
                    "peak memory is": "the server process's largest resident set, sampled on each of its messages"}
            found = {name: server.get(f"/view?{urlencode(outputs[name]['images'][0])}") for name in PICTURES}
            said = {when: numbers(outputs[titled(graph, title)]["text"][0]) for when, title in REPORTS.items()}
    rows = evaluations(graph[titled(graph, "Attention Inject")]["inputs"], settings["steps"], settings["cfg"])
    return found, said, cost | {"model evaluations, row-passes": rows}


def numbers(text: str) -> "dict[str, float]":
    """The report's lines `name: value unit` as {name: value}. A percentage becomes a share."""
    pairs = (line.partition(": ")[::2] for line in text.splitlines())
    return {name: float(value.split()[0]) / (100 if value.endswith("%") else 1) for name, value in pairs}


def evaluations(inject: dict, steps: int, cfg: float) -> "dict[str, int]":
    """Rows that go through the network: one per step of each pass, and the reference's while maps are injected."""
    from palimpsest.host.sampling import schedule
    from palimpsest.miniature.model import load_miniature
    model = load_miniature()[0]
    level = model.get_model_object("model_sampling").percent_to_sigma
    spans = [(level(inject[f"{kind}_start"]), level(inject[f"{kind}_end"])) for kind in ("cross", "self")]
    read = sum(any(high >= sigma >= low and high > low for high, low in spans)
               for sigma in schedule(model, "ddim_uniform", steps)[:-1].tolist())
    rows = {"inversion": steps, "maps": steps + 1, "reconstruction": steps, "edit": steps * (1 + (cfg != 1)),
            "reference": read}
    return rows | {"all": sum(rows.values())}


def measure(edit, pictures: dict) -> dict:
    """Numbers that need the scene's truth: the VAE's round trip, the ideal edit, and what the scene reader sees."""
    import torch
    from palimpsest.metrics import edit_numbers, edit_scores, ideal_edit
    from palimpsest.miniature.model import load_miniature
    from palimpsest.miniature.reader import read
    from palimpsest.miniature.scenes import visible
    with torch.inference_mode():
        vae = load_miniature()[2]
        source, target, mask = (torch.from_numpy(a)[None] for a in (edit.source_image, edit.target_image, edit.mask))
        trip = vae.decode(vae.encode(source)).float().cpu()
        ideal = ideal_edit(source, target, mask, vae.encode, vae.decode).float().cpu()
        best = {name: round(value.item(), 4) for name, value in edit_numbers(source, ideal, trip, target, mask).items()}
        found = {"VAE round trip": {k.split("_")[1]: v for k, v in best.items() if k.startswith("reconstruction")},
                 "ideal edit": {k: v for k, v in best.items() if not k.startswith("reconstruction")}}
        before, after = visible(edit.source), visible(edit.target)
        wanted = {name: value for name, value in after.items() if before.get(name) != value}
        seen = {"wanted": wanted, "VAE round trip": read(trip)[0]}
        stays = {name: value for name, value in seen["VAE round trip"].items() if name in after}
        for where, image in {"before compositing": pictures["decoded"], "after compositing": pictures["edited"],
                             "ideal edit": ideal}.items():
            seen[where] = read(image)[0]
            success, kept = edit_scores([seen[where]], [stays], [wanted])
            found.setdefault(where, {}).update(success=success.item(), kept=round(kept.item(), 4))
    return found | {"the reader sees": seen}


def picture(png: bytes):
    """A PNG file as [1, H, W, 3] in 0..1."""
    import numpy as np
    import torch
    from PIL import Image
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"), dtype="float32") / 255)[None]


def compose(edit, pictures: dict, report: dict):
    """The sheet as a PIL image: the prompts, the pictures with their numbers, and the words' heat maps."""
    import torch
    from palimpsest.metrics.drawing import INK, PALE, PAPER, colours, sheet, tile
    from PIL import Image, ImageDraw, ImageFont
    after, trip, ideal = report["after compositing"], report["VAE round trip"], report["ideal edit"]
    difference = (pictures["edited"] - pictures["source"]).abs().mean(-1)[0]
    tiles = [tile(pictures["source"][0], "source"),
             tile(pictures["reconstruction"][0], "reconstruction", [
                 ("PSNR", decibels(after["reconstruction_psnr"])), ("of the VAE alone", decibels(trip["psnr"]))]),
             tile(pictures["edited"][0], "edited", [("the reader sees it", "yes" if after["success"] else "no"),
                                                    ("kept of the rest", f"{100 * after['kept']:.0f} %")]),
             tile(torch.from_numpy(edit.target_image), "exact target", [
                 ("PSNR of edited", decibels(after["target_psnr"])),
                 ("of the ideal edit", decibels(ideal["target_psnr"]))]),
             tile(colours(difference / difference.max()), "|edited - source|", [
                 ("background PSNR", decibels(after["background_psnr"])),
                 ("of the ideal edit", decibels(ideal["background_psnr"]))]),
             tile(pictures["mask"][0], "mask", [("of the words", report["settings"]["words"])])]
    parts = [Image.fromarray((part[0] * 255).round().byte().numpy()) for part in (sheet([tiles]), pictures["heatmap"])]
    top, font = 78, ImageFont.load_default(20)
    page = Image.new("RGB", (max(p.width for p in parts), top + sum(p.height for p in parts)), PAPER)
    draw = ImageDraw.Draw(page)
    for y, key, text in ((42, "source", edit.source_text), (72, "target", edit.target_text)):
        draw.text((22, y), key, PALE, font, "ls")
        draw.text((104, y), text, INK, font, "ls")
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def decibels(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f} dB"


def strict(value):
    """A value for strict JSON, which has neither infinity nor nan."""
    if isinstance(value, dict):
        return {name: strict(v) for name, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def headline(report: dict) -> "list[str]":
    """The five main numbers, each beside the best possible one."""
    before, after, ideal = (report[name] for name in ("before compositing", "after compositing", "ideal edit"))
    alone, seen = report["VAE round trip"]["psnr"], "success" if after["success"] else "no success"
    return [f"reconstruction  {decibels(after['reconstruction_psnr'])} PSNR (the VAE alone: {decibels(alone)})",
            f"background      {decibels(before['background_psnr'])} PSNR, composited "
            f"{decibels(after['background_psnr'])} (the ideal edit: {decibels(ideal['background_psnr'])})",
            f"edit            {seen}, {100 * after['kept']:.0f} % of the rest kept (by the scene reader)",
            f"evaluations     {report['model evaluations, row-passes']['all']} rows through the network",
            f"time            {report['seconds']:.1f} s, at most {report['peak memory, MB']} MB"]


def main() -> int:
    logging.disable(logging.INFO)
    try:
        load_pack()
    except RuntimeError as error:
        raise SetupError(str(error)) from None
    from palimpsest.miniature import CFG, SCENE
    from palimpsest.miniature.scenes import held_out_edit
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=SCENE["seed"], help="number of the held-out scene")
    parser.add_argument("--kind", default=SCENE["kind"], help="kind of edit, as Miniature Scene lists them")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=CFG, help="guidance of the edit")
    settings = vars(parser.parse_args())
    try:
        edit = held_out_edit(settings["seed"], settings["kind"])
    except ValueError as error:
        raise SetupError(str(error)) from None
    OUTPUT.mkdir(parents=True, exist_ok=True)
    files, said, cost = run(settings, edit)
    pictures = {name: picture(png) for name, png in files.items()}
    asked = {"source": edit.source_text, "target": edit.target_text, "words": changed_words(edit)}
    report = {"settings": settings | asked,
              "host": f"ComfyUI {host_version(find_host())}",
              "machine": f"{platform.platform()}, Python {platform.python_version()}"} | cost
    for where, found in measure(edit, pictures).items():
        report[where] = said.get(where, {}) | found
    for name in files.keys() - {"decoded"}:
        (OUTPUT / f"{name}.png").write_bytes(files[name])
    compose(edit, pictures, report).save(OUTPUT / "sheet.png")
    (OUTPUT / "report.json").write_text(json.dumps(strict(report), indent=2) + "\n", encoding="utf-8")
    say(f"the sheet is {OUTPUT / 'sheet.png'}, and all numbers are in report.json beside it")
    print("\n".join(f"  {line}" for line in headline(report)))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"palimpsest: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
