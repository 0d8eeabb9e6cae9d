"""Run the main workflow headless on a real ComfyUI server and keep its pictures and numbers in output/demo."""
import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from comfy_server import Server, free_port
from environment import SetupError, host_version, say
from pack import NAME, ROOT, find_host

OUTPUT = ROOT / "output" / "demo"
PICTURES = ("source", "reconstruction", "edited", "heatmap", "mask", "sheet")
# What the last lines say: two numbers beside each other are a result and the best that could be had.
HEADLINE = [("reconstruction", "reconstruction PSNR", "VAE PSNR"), ("background", "background PSNR", "ideal background PSNR"),
            ("edit", "success", "kept"), ("evaluations", "evaluations"), ("seconds", "seconds")]


def prompt(seed: int = 0, edit: str = "change colour", steps: int = 50, cfg: float = 7.5) -> dict:
    """The main workflow in the host's API format. A node's id is its name in the progress and in output/demo."""
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    def replay(model):
        return node("PalimpsestReplay", model=[model, 0], inversion=["inversion", 0], start=0.0)

    def sample(replayed, positive, scale):
        return node("SamplerCustom", model=[replayed, 0], add_noise=False, noise_seed=seed, cfg=scale,
                    positive=positive, negative=["null prompt", 0], sampler=[replayed, 1], sigmas=[replayed, 2],
                    latent_image=[replayed, 3])

    graph = {
        "model": node("PalimpsestLoadMiniature"),
        "scene": node("PalimpsestMiniatureScene", seed=seed, edit=edit),
        "words": node("PalimpsestPromptEdit", clip=["model", 1], source=["scene", 1], target=["scene", 2]),
        "null prompt": node("CLIPTextEncode", clip=["model", 1], text=""),
        "encode": node("VAEEncode", pixels=["scene", 0], vae=["model", 2]),
        "inversion": node("PalimpsestDDIMInvert", model=["model", 0], source=["words", 0], latent=["encode", 0],
                          steps=steps, scheduler="ddim_uniform"),
        "attention": node("PalimpsestAttentionStore", model=["model", 0], inversion=["inversion", 0],
                          prompt_edit=["words", 2]),
        "inject": node("PalimpsestAttentionInject", model=["model", 0], inversion=["inversion", 0],
                       prompt_edit=["words", 2]),
        "blend": node("PalimpsestLatentBlend", model=["inject", 0], inversion=["inversion", 0],
                      attention=["attention", 0]),
        "replay source": replay("model"),
        "reconstruct": sample("replay source", ["words", 0], 1.0),
        "replay edit": replay("blend"),
        "edit": sample("replay edit", ["words", 1], cfg),
        "decode reconstruction": node("VAEDecode", samples=["reconstruct", 0], vae=["model", 2]),
        "decode edit": node("VAEDecode", samples=["edit", 0], vae=["model", 2]),
        "word mask": node("PalimpsestAttentionMask", attention=["attention", 0]),
        "composite": node("ImageCompositeMasked", destination=["scene", 0], source=["decode edit", 0], x=0, y=0,
                          resize_source=False, mask=["word mask", 0]),
        "heat": node("PalimpsestAttentionHeatmap", attention=["attention", 0], image=["scene", 0]),
        "mask picture": node("MaskToImage", mask=["word mask", 0]),
        "report": node("PalimpsestEditReport", source=["scene", 0], edited=["composite", 0],
                       reconstruction=["decode reconstruction", 0], target=["scene", 3], mask=["scene", 4]),
        "numbers": node("PreviewAny", source=["report", 1]),
    }
    shown = dict(zip(PICTURES, ("scene", "decode reconstruction", "composite", "heat", "mask picture", "report")))
    return graph | {name: node("SaveImage", images=[of, 0], filename_prefix=f"{NAME}/{name}") for name, of in shown.items()}


def refusal(answer: dict) -> str:
    """The host's refusal of a prompt in one line."""
    details = [f"{node}: {e['message']} ({e['details']})"
               for node, found in answer.get("node_errors", {}).items() for e in found["errors"]]
    error = answer.get("error", {})
    return "; ".join(details) or f"{error.get('message', answer)} {error.get('details', '')}".strip()


async def execute(server: Server, graph: dict) -> dict:
    """Queue the prompt, show its progress, wait for its end and return the outputs by node."""
    client, terminal = uuid.uuid4().hex, sys.stdout.isatty()
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket:
            answer = server.post("/prompt", {"prompt": graph, "client_id": client})
            if answer.get("node_errors") or "prompt_id" not in answer:
                raise SetupError(f"ComfyUI refused the workflow: {refusal(answer)}; see {server.log}")
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if kind == "executing" and data["node"]:
                    print(f"{chr(10) if terminal else ''}  {data['node']}", end="" if terminal else "\n", flush=True)
                elif kind == "progress" and terminal:
                    print(f"\r  {data['node']} {data['value']}/{data['max']}", end="", flush=True)
                elif kind in ("execution_error", "execution_interrupted"):
                    raise SetupError(f"the workflow failed in {data['node_type']}: "
                                     f"{data.get('exception_message', 'interrupted').strip()}; see {server.log}")
                elif kind == "execution_success":
                    break
            else:
                raise SetupError(f"ComfyUI stopped during the workflow; see {server.log}")
    print(end="\n" if terminal else "")
    return json.loads(server.get(f"/history/{answer['prompt_id']}"))[answer["prompt_id"]]["outputs"]


def numbers(text: str) -> "dict[str, float]":
    """The report's lines `name: value`, its unit dropped."""
    pairs = (line.rpartition(":")[::2] for line in text.splitlines() if ":" in line)
    return {name.strip(): float(value.split()[0]) for name, value in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which held-out scene")
    parser.add_argument("--edit", default="change colour", help="kind of edit")
    settings = vars(parser.parse_args())
    host = find_host()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        say("starting ComfyUI")
        with Server(host, Path(sys.executable), Path(base), free_port(), log=OUTPUT / "server.log") as server:
            begun = time.monotonic()
            outputs = asyncio.run(execute(server, prompt(**settings)))
            seconds = time.monotonic() - begun
            for name in PICTURES:
                picture = outputs[name]["images"][0]
                (OUTPUT / f"{name}.png").write_bytes(server.get(f"/view?{urlencode(picture)}"))
    found = {"seconds": round(seconds, 1)} | numbers(outputs["numbers"]["text"][0])
    report = {"numbers": found, "host": host_version(host), "settings": settings, "seed": settings["seed"]}
    (OUTPUT / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    say(f"{OUTPUT / 'sheet.png'}")
    for label, *names in HEADLINE:
        print(f"  {label:15}" + ", ".join(f"{name} {found[name]:g}" for name in names if name in found))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"palimpsest: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
