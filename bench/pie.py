"""PIE-Bench (Ju et al. 2023, arXiv:2310.01506) with your own checkpoint, on its pictures, prompts, masks and
conventions.

    python tools/dev.py bench pie FOLDER [--checkpoint FILE] [--inversion NAME ...] [--editor NAME ...] [--count 700]
        [--steps 50] [--cfg 7.5] [--clip-vision FILE --clip-text FILE] [--workers N [--address HOST:PORT]]

FOLDER holds mapping_file.json and annotation_images/. Without a checkpoint the miniature edits, which knows no
photographs.
Background MSE, PSNR and SSIM are PIE-Bench's: the edited region is black in both pictures, the mean is over the whole
picture, and dB are averaged. Ours, over the background's area alone, are measured too.
CLIP similarities to the target prompt, of the whole picture and of the edited region, need a CLIP vision model and a
CLIP text model with its projection (the paper's tables use ViT-L/14). LPIPS and structure distance need more networks
and are left out.
Two rows are no editors: the picture through the autoencoder, a ceiling of what can be kept, and the target prompt
sampled from fresh noise, a floor.
Writes one JSON line per picture to output/pie.jsonl. A picture that is in it with these settings is not edited again.
Prints the means with 95 % intervals (MSE in 1e-4, as in the paper's tables), all together and by PIE-Bench's type of
edit, as SceneBench does.
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
from .floors import fresh_noise
from .inversions import METHODS, Scenes
from .scenes import EDITORS, edited, stored
from .spread import add_arguments, spread
from .summary import NOBODY, Column, summary, table, table_by_kind

COLUMNS = (Column("cases", "cases"), Column("pie_mse", "MSE, 1e-4", " "), Column("pie_psnr", "PSNR", " dB"),
           Column("pie_ssim", "SSIM", "%"), Column("background_psnr", "background", " dB"),
           Column("background_ssim", "its SSIM", "%"), Column("clip_whole", "CLIP", " "),
           Column("clip_edited", "CLIP, edited", " "))
BY_KIND = Column("pie_psnr", "", " dB"), Column("clip_edited", "", " ")
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


def entries(folder, count) -> list:
    """(number, what is said of it) of the first pictures."""
    return list(json.loads(Path(folder, "mapping_file.json").read_text(encoding="utf-8")).items())[:count]


def cases(folder, count):
    return [Case(folder, number, entry) for number, entry in entries(folder, count)]


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


# {name: pictures of Scenes, by the settings}
REFERENCES = {"autoencoder": lambda scenes, args: scenes.round_trip,
              "fresh noise": lambda scenes, args: fresh_noise(scenes, args.cfg, args.steps, 0)}


class Measurer:
    """Edits and measures pictures. Its settings are main's arguments."""

    def __init__(self, **settings):
        self.args = args = argparse.Namespace(**settings)
        self.models = (comfy.sd.load_checkpoint_guess_config(args.checkpoint)[:3] if args.checkpoint
                       else load_miniature())
        self.clip = Clip(args.clip_vision, args.clip_text) if args.clip_vision else None

    def rows(self, number, entry, missing):
        """A line's own part for every (inversion, editor) that is missing."""
        args, case = self.args, Case(self.args.folder, number, entry)
        with torch.inference_mode():
            scenes = Scenes(self.models, [case])
            inversions = {by: scenes.invert(METHODS[by], args.cfg, args.steps)
                          for by in dict.fromkeys(by for by, _ in missing) if by != NOBODY}
            for by, editor in missing:
                made = (REFERENCES[editor](scenes, args) if by == NOBODY else
                        edited(scenes, inversions[by], editor, args.cfg))
                yield {"case": number, "kind": case.kind, "inversion": by, "editor": editor,
                       **measure(case, scenes, made, self.clip)},


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--inversion", nargs="+", choices=METHODS, default=["DDIM"])
    parser.add_argument("--editor", nargs="+", choices=[n for n, row in EDITORS.items()
                                                          if not row.told and not row.kinds and row.on == "DDIM"],
                        default=["plain", "Attention Inject"])
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--clip-vision")
    parser.add_argument("--clip-text")
    parser.add_argument("--out", type=Path, default=LINES)
    add_arguments(parser)
    args = parser.parse_args()
    if (args.clip_vision is None) != (args.clip_text is None):
        parser.error("a CLIP score needs both --clip-vision and --clip-text")
    args.folder = args.folder.resolve()
    about = {"folder": str(args.folder), "clip": args.clip_vision, "clip_text": args.clip_text,
             "checkpoint": args.checkpoint, "steps": args.steps, "cfg": args.cfg}
    rows = stored(args.out, about.items())  # older lines say no clip_text
    args.out.parent.mkdir(exist_ok=True)
    chosen = entries(args.folder, args.count)
    wanted = [(NOBODY, r) for r in REFERENCES] + [(i, e) for i in args.inversion for e in args.editor]
    missing = {n: [pair for pair in wanted if (n, *pair) not in rows] for n, _ in chosen}

    def write(measured):
        line = measured | about
        rows[line["case"], line["inversion"], line["editor"]] = line
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    spread(Measurer, vars(args), [[(n, entry, missing[n])] for n, entry in chosen if missing[n]], write, args)
    print(report([{n: v for n, v in r.items() if n not in about} for (number, _, _), r in rows.items()
                  if number in dict(chosen)]))


def report(lines) -> str:
    lines = [line | {"pie_mse": 1e4 * line["pie_mse"]} if line.get("pie_mse") is not None else line for line in lines]
    kinds = sorted({line["kind"] for line in lines})
    found = summary(lines, kinds, [c.number for c in COLUMNS if c.number != "cases"])
    return f"{table(found, COLUMNS)}\n\n{table_by_kind(found, kinds, BY_KIND)}"
