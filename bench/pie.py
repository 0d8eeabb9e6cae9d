"""PIE-Bench (Ju et al. 2023, arXiv:2310.01506) with your own checkpoint, on its pictures, prompts, masks and
conventions.

    python tools/dev.py bench pie FOLDER [--checkpoint FILE] [--inversion NAME] [--editor NAME ...] [--count 700]
        [--steps 50] [--cfg 7.5] [--clip-vision FILE --clip-text FILE]

FOLDER holds mapping_file.json and annotation_images/. Without a checkpoint the miniature edits, which knows no
photographs.
Background MSE, PSNR and SSIM are PIE-Bench's: the edited region is black in both pictures, the mean is over the whole
picture, and dB are averaged. Ours, over the background's area alone, are measured too.
CLIP similarities to the target prompt, of the whole picture and of the edited region, need a CLIP vision model and a
CLIP text model with its projection (the paper's tables use ViT-L/14). LPIPS and structure distance need more networks
and are left out.
Writes one JSON line per picture to output/pie.jsonl. A picture that is in it is not edited again.
"""
import argparse
import json
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import numpy as np
import torch
from PIL import Image

from ..metrics.pixels import pie_mse, pie_psnr, pie_ssim, psnr, ssim
from ..miniature.model import load_miniature
from .inversions import METHODS, Scenes
from .scenes import EDITORS, edited

LINES = Path(__file__).parents[1] / "output" / "pie.jsonl"


class Case:
    """A picture of PIE-Bench, with the attributes of an edit that `Scenes` reads."""

    def __init__(self, folder, number, entry):
        with Image.open(Path(folder, "annotation_images", entry["image_path"])) as image:
            self.source_image = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        self.number, self.kind = number, entry["editing_type_id"]
        self.source_text, self.target_text = (
            entry[n].replace("[", "").replace("]", "") for n in ("original_prompt", "editing_prompt"))
        self.mask = decode_mask(entry["mask"], self.source_image.shape[:2])


def decode_mask(runs, size) -> np.ndarray:
    """A mask [height, width] in {0, 1} from PIE-Bench's run lengths: start and length in turn, over the rows.

    The picture's border belongs to the mask.
    """
    flat = np.zeros(size[0] * size[1], dtype=np.float32)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start:start + length] = 1
    mask = flat.reshape(size)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    return mask


def cases(folder, count):
    entries = json.loads(Path(folder, "mapping_file.json").read_text(encoding="utf-8"))
    return [Case(folder, number, entry) for number, entry in list(entries.items())[:count]]


class Clip:
    """max(100 · cos, 0) between pictures and prompts, with the host's loaders."""

    def __init__(self, vision, text):
        self.vision, self.text = comfy.clip_vision.load(vision), comfy.sd.load_clip([text])

    def score(self, pictures, prompt):
        seen = self.vision.encode_image(pictures)["image_embeds"]
        said = self.text.encode_from_tokens(self.text.tokenize(prompt), return_pooled=True)[1]
        return (100 * torch.cosine_similarity(seen.float(), said.float().to(seen))).clamp(min=0)


def measure(case, scenes, made, clip=None) -> dict:
    mask, background = scenes.masks, 1 - scenes.masks
    numbers = {"pie_mse": pie_mse(scenes.pictures, made, mask), "pie_psnr": pie_psnr(scenes.pictures, made, mask),
               "pie_ssim": pie_ssim(scenes.pictures, made, mask),
               "background_psnr": psnr(scenes.pictures, made, background),
               "background_ssim": ssim(scenes.pictures, made, background)}
    if clip is not None:
        numbers |= {"clip_whole": clip.score(made, case.target_text),
                    "clip_edited": clip.score(made * mask[..., None], case.target_text)}
    return {n: None if not v.isfinite().all() else round(float(v), 6) for n, v in numbers.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--inversion", choices=METHODS, default="DDIM")
    parser.add_argument("--editor", nargs="+", choices=[n for n in EDITORS if "true mask" not in n],
                        default=["plain", "Attention Inject"])
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--clip-vision")
    parser.add_argument("--clip-text")
    parser.add_argument("--out", type=Path, default=LINES)
    args = parser.parse_args()
    if (args.clip_vision is None) != (args.clip_text is None):
        parser.error("a CLIP score needs both --clip-vision and --clip-text")
    parts = comfy.sd.load_checkpoint_guess_config(args.checkpoint)[:3] if args.checkpoint else load_miniature()
    clip = Clip(args.clip_vision, args.clip_text) if args.clip_vision else None
    about = {"folder": str(args.folder), "clip": args.clip_vision, "checkpoint": args.checkpoint,
             "inversion": args.inversion, "steps": args.steps, "cfg": args.cfg}
    rows = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()] if args.out.exists() else []
    rows = [r for r in rows if about.items() <= r.items()]
    held = {(r["case"], r["editor"]) for r in rows}
    args.out.parent.mkdir(exist_ok=True)
    chosen = cases(args.folder, args.count)
    with torch.inference_mode():
        for case in chosen:
            missing = [e for e in args.editor if (case.number, e) not in held]
            if not missing:
                continue
            scenes = Scenes(parts, [case])
            inversion = scenes.invert(METHODS[args.inversion], args.cfg, args.steps)
            for editor in missing:
                made = edited(scenes, inversion, editor, args.cfg)
                rows.append({"case": case.number, "kind": case.kind, "editor": editor, **about,
                             **measure(case, scenes, made, clip)})
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    for editor in args.editor:
        mine = [r for r in rows if r["editor"] == editor and r["case"] in {c.number for c in chosen}]
        numbers = "pie_mse", "pie_psnr", "pie_ssim", "background_psnr", "background_ssim", "clip_whole", "clip_edited"
        means = {n: [r[n] for r in mine if r.get(n) is not None] for n in numbers}
        print(editor, len(mine), ", ".join(f"{n} {sum(v) / len(v):.4g}" for n, v in means.items() if v))
