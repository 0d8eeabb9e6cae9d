"""Quality of the main job: held-out one-word edits of the miniature's scenes, whose exact answer is known.

    python tools/dev.py bench edits [--count 25] [--steps 50] [--cfg 4]

Every method edits the same scenes for each kind of edit (colour, object, material, background). The methods sample the
target from the inverted noise: plainly, with Attention Inject, and also with Latent Blend under the true edit mask. Two
rows edit nothing: the plain replay of the source at CFG 1, and the same with Attention Inject over the whole schedule
("inject source").
The scene reader measures success and kept. Background is PSNR outside the true mask grown by two latent cells. The
ideal edit, the exact target blended into the source's latent, is measured too.
Writes bench/results/edits.json and prints the table.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import comfy.samplers
import torch

from ..editing.inverting import invert
from ..editing.replay import replay
from ..metrics.edits import edit_scores, ideal_edit
from ..metrics.masks import background_mask
from ..metrics.pixels import psnr
from ..miniature.model import load_miniature
from ..miniature.reader import read
from ..miniature.scenes import held_out_edit, visible
from ..nodes.attention.p2p import PalimpsestAttentionInject
from ..nodes.blending.local_blend import PalimpsestLatentBlend
from ..nodes.prompt import PalimpsestPromptEdit
from .stats import paired_bootstrap

KINDS = ("colour", "object", "material", "background")
INJECT = {"cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "cross_resolution": 1.0,
          "self_resolution": 0.5, "word_weights": "", "word_ends": ""}
RESULTS = Path(__file__).parent / "results" / "edits.json"


def sample(model, start, positive, negative, cfg):
    """The host's sampling from Replay's SAMPLER, SIGMAS and LATENT, in model space."""
    sampler, sigmas, latent = start
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    x = latent["samples"]
    return guider.sample(torch.zeros_like(x), x, sampler, sigmas, disable_pbar=True, seed=0)


def edit_all(edits, parts, steps, cfg):
    """(sources, exact targets, masks, {method: pictures [B, H, W, C]}) of several edits in one batch."""
    model, clip, vae = parts
    pictures, truth, masks = (torch.stack([torch.from_numpy(getattr(e, n)) for e in edits])
                              for n in ("source_image", "target_image", "mask"))
    texts = ["\n".join(getattr(e, n) for e in edits) for n in ("source_text", "target_text")]
    source, target, edit = PalimpsestPromptEdit.execute(clip, *texts, "auto").result
    _, same, unchanged = PalimpsestPromptEdit.execute(clip, texts[0], texts[0], "auto").result
    null = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    latent = {"samples": vae.encode(pictures)}
    inversion = invert("DDIM", model, source, latent, steps).inversion
    replayed, *start = replay(model, inversion)
    whole = {**INJECT, "cross_end": 1.0, "self_end": 1.0, "self_resolution": 1.0}
    injected = PalimpsestAttentionInject.execute(replayed, inversion, edit, **INJECT).result[0]
    mirror = PalimpsestAttentionInject.execute(replayed, inversion, unchanged, **whole).result[0]
    blended = PalimpsestLatentBlend.execute(injected, inversion, 0.0, "", "", 0.3, mask=masks).result[0]
    runs = {"replay": (replayed, source, 1.0), "inject source": (mirror, same, 1.0), "plain": (replayed, target, cfg),
            "inject": (injected, target, cfg), "inject + blend": (blended, target, cfg)}
    made = {name: vae.decode(sample(m, start, positive, null, scale)) for name, (m, positive, scale) in runs.items()}
    made["ideal"] = ideal_edit(pictures, truth, masks, vae.encode, vae.decode)
    made["round trip"] = vae.decode(latent["samples"])
    return pictures, truth, masks, made


def score(edits, pictures, truth, masks, made):
    """{method: {number: [B]}}."""
    wanted = [{n: v for n, v in visible(e.target).items() if visible(e.source).get(n) != v} for e in edits]
    before = read(made["round trip"])
    rows = {}
    for name, images in made.items():
        success, kept = edit_scores(read(images), before, wanted)
        rows[name] = {"success": success, "kept": kept, "background": psnr(images, pictures, background_mask(masks)),
                      "target": psnr(images, truth), "source": psnr(images, pictures)}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=25, help="edits of each kind")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0, help="number of the first held-out edit")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    started = time.time()
    table = {}
    with torch.inference_mode():
        parts = load_miniature()
        for kind in KINDS:
            edits = [held_out_edit(args.seed + i, kind) for i in range(args.count)]
            table[kind] = score(edits, *edit_all(edits, parts, args.steps, args.cfg))
            print(report({kind: table[kind]}), flush=True)
    table["all"] = {m: {n: torch.cat([table[k][m][n] for k in KINDS]) for n in table["colour"][m]}
                    for m in table["colour"]}
    print(report({"all": table["all"]}))
    result = {"settings": {k: v for k, v in vars(args).items() if k != "out"} | {"inject": INJECT},
              "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
              "seconds": round(time.time() - started), "means": means(table), "differences": differences(table["all"])}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def means(table):
    return {kind: {method: {n: round(v.nanmean().item(), 4) for n, v in numbers.items()}
                   for method, numbers in rows.items()}
            for kind, rows in table.items()}


def differences(rows):
    """Paired bootstrap intervals of each part's gain, and of the distance to the ideal edit."""
    found = {}
    for a, b in (("inject source", "replay"), ("inject", "plain"), ("inject + blend", "inject"),
                 ("inject + blend", "ideal")):
        for n in ("success", "kept", "background", "target", "source"):
            both = rows[a][n].isfinite() & rows[b][n].isfinite()
            interval = paired_bootstrap(rows[a][n][both].double(), rows[b][n][both].double(),
                                        torch.Generator().manual_seed(0))
            found[f"{n}: {a} - {b}"] = [round(v, 4) for v in interval]
    return found


def report(table) -> str:
    lines = []
    for kind, rows in means(table).items():
        lines.append(f"{kind:12s}" + "".join(f"{n:>12s}" for n in next(iter(rows.values()))))
        lines += [f"  {method:16s}" + "".join(f"{v:>12.3f}" for v in numbers.values())
                  for method, numbers in rows.items()]
    return "\n".join(lines)
