"""Every inversion on the same held-out scenes of the miniature: what it returns, what it lets edit, and what it costs.

    python tools/dev.py bench inversions [--count 50] [--steps 50] [--cfg 7.5] [--only NAME ...]

Scenes: scene i is the source of held-out one-word edit i, of the four kinds in turn.
Reconstruction: PSNR of a plain replay of the source prompt, next to the autoencoder's own round trip.
Success: the scene reader sees the new attribute. Background: PSNR outside the true mask grown by two latent cells. Both
    are measured on the target prompt at --cfg, plain and with Attention Inject at its defaults.
Guidance: methods whose recording belongs to one CFG are inverted at the CFG of their replay.
Two more rows use DDIM Invert. One reads the source again at every step (Attention Inject over the whole schedule,
nothing edited), which is what Direct inversion gives an editor. The other has a source branch that is sampled along at
--cfg and drifts, as in the published Prompt-to-Prompt.

Writes each row to bench/results/inversions.json as soon as it is measured. Rows that are there with the same settings
are kept unless --only names them. Prints the table of docs/benchmarks.md.
"""
import argparse
import dataclasses
import json
import platform
import statistics
from functools import cached_property
from pathlib import Path

import comfy.sample
import comfy.samplers
import torch

from .. import showcase
from ..editing.inverting import invert, learn
from ..editing.replay import replay, retrace
from ..host.sampling import prediction_type
from ..host.tokens import encode, tokenize_rows
from ..metrics.edits import edit_scores
from ..metrics.masks import background_mask
from ..metrics.pixels import psnr
from ..miniature.model import load_miniature
from ..miniature.reader import read
from ..miniature.scenes import held_out_edit, render, visible
from ..nodes.attention.p2p import PalimpsestAttentionInject
from ..nodes.prompt import PalimpsestPromptEdit
from ..showcase.rows import InversionRow
from .edits import INJECT, KINDS, sample
from .floors import alone, another_scene
from .stats import paired_bootstrap
from .words import changed

WHOLE = {**INJECT, "cross_end": 1.0, "self_end": 1.0, "self_resolution": 1.0}
RESULTS = Path(__file__).parent / "results" / "inversions.json"


METHODS = {row.name: row for row in showcase.collected("inversions")}


class Scenes:
    """Several edits as one batch: pictures, masks, conditionings, and the sources' round trips.

    changed: what each edit's words change (words.Changed).
    scheduler: the one that the model's kind wants, in place of a method's own on a flow model.
    """

    def __init__(self, parts, edits):
        self.parts, self.edits = parts, edits
        self.scheduler = "simple" if prediction_type(parts[0]) == "flow" else "ddim_uniform"
        _, clip, vae = parts
        self.pictures = torch.stack([torch.from_numpy(e.source_image) for e in edits])
        self.masks = torch.stack([torch.from_numpy(e.mask) for e in edits])
        texts = ["\n".join(getattr(e, n) for e in edits) for n in ("source_text", "target_text")]
        self.source, self.target, self.edit = PalimpsestPromptEdit.execute(clip, *texts, "auto").result
        self.unchanged = PalimpsestPromptEdit.execute(clip, texts[0], texts[0], "auto").result[2]
        self.null = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        self.latent = {"samples": vae.encode(self.pictures)}
        self.round_trip = vae.decode(self.latent["samples"])
        self.changed = [changed(e.source_text, e.target_text) for e in edits]

    @cached_property
    def singles(self) -> list:
        """Each edit as a batch of its own."""
        return [Scenes(self.parts, [edit]) for edit in self.edits]

    def encoded(self, texts):
        """A CONDITIONING of one text a picture."""
        return encode(self.parts[1], tokenize_rows(self.parts[1], texts))

    @property
    def others(self) -> list:
        """Another scene with each target's caption."""
        return [another_scene(edit, edit.target.seed) for edit in self.edits]

    @property
    def objects(self) -> list:
        """What each target has and its source lacks, alone on another ground."""
        return [alone(edit) for edit in self.edits]

    def other(self, drawn, inversion):
        """The INVERSION of other scenes, one a picture, in as many steps by DDIM."""
        model, _, vae = self.parts
        pictures = torch.stack([torch.from_numpy(render(scene)) for scene in drawn])
        return invert("DDIM", model, self.encoded([scene.caption() for scene in drawn]),
                      {"samples": vae.encode(pictures)}, len(inversion.sigmas) - 1, self.scheduler).inversion

    def invert(self, row: InversionRow, cfg, steps, **changed):
        """The INVERSION of the sources by a row's method, at its defaults except what the row or the caller sets."""
        model, method = self.parts[0], row.method
        guidance = {} if method.cfg is None else {"cfg": cfg}
        if guidance and "uncond" not in method.theta:
            guidance["negative"] = self.null
        settings = {**guidance, **(row.settings(steps) if callable(row.settings) else row.settings), **changed}
        if not method.invert and not method.along:
            path = invert("DDIM", model, self.source, self.latent, steps, self.scheduler).inversion
            return learn(method, model, path, **settings)
        if self.scheduler == "simple":
            settings["scheduler"] = "simple"
        return invert(method, model, self.source, self.latent, steps, **settings).inversion

    def replay(self, inversion, prompt, cfg, read_by=None, edit=lambda model: model, start=0.0, anew=False, **inject):
        """Pictures of a prompt sampled from an inversion with edit(MODEL).

        start: where Replay starts.
        anew: whether it begins there with new noise on the sources, of each edit's own seed.
        inject: inputs of Attention Inject, which then reads `read_by`.
        """
        model, *begun = replay(self.parts[0], inversion, start)
        if anew:
            noise = torch.stack([torch.randn(x.shape, generator=torch.Generator().manual_seed(e.target.seed))
                                 for x, e in zip(self.latent["samples"], self.edits)])
            made = comfy.sample.sample_custom(edit(self.parts[0]), noise, cfg, comfy.samplers.sampler_object("euler"),
                                              begun[1], prompt, self.null, self.latent["samples"], disable_pbar=True,
                                              seed=0)
            return self.parts[2].decode(made)
        model = edit(model)
        if inject:
            model = PalimpsestAttentionInject.execute(model, read_by or inversion, **inject).result[0]
        return self.parts[2].decode(sample(model, begun, prompt, self.null, cfg))

    def drifting(self, inversion, cfg):
        """The INVERSION with the latents of a source branch that is sampled along at this CFG, in place of its own."""
        path, _ = retrace(replay(self.parts[0], inversion), inversion, cfg, self.null)
        return dataclasses.replace(inversion, latents=path)


def measure(scenes: Scenes, row: InversionRow, cfg, steps) -> dict:
    """{number: [B]} of one row."""
    inversion = scenes.invert(row, cfg, steps)
    faithful = scenes.invert(row, cfg, steps, **row.faithful) if row.faithful else inversion
    gentle = scenes.invert(row, 1.0, steps) if row.guided else faithful
    read_by = scenes.drifting(inversion, cfg) if row.source == "drifting" else inversion
    same = {"prompt_edit": scenes.unchanged, **WHOLE} if row.source == "re-read" else {}
    made = {"recon_1": scenes.replay(gentle, scenes.source, 1.0, **same),
            "recon_cfg": scenes.replay(faithful, scenes.source, cfg, **same)}
    if row.edits:
        made["inject"] = scenes.replay(inversion, scenes.target, cfg, read_by, prompt_edit=scenes.edit, **INJECT)
        made["plain"] = scenes.replay(inversion, scenes.target, cfg)
    wanted = [{n: v for n, v in visible(e.target).items() if visible(e.source).get(n) != v} for e in scenes.edits]
    before, background = read(scenes.round_trip), background_mask(scenes.masks)
    numbers = {"ceiling": psnr(scenes.round_trip, scenes.pictures)}
    numbers |= {name: psnr(made[name], scenes.pictures) for name in ("recon_1", "recon_cfg")}
    for name in ("inject", "plain") if row.edits else ():
        numbers[f"{name}_success"] = edit_scores(read(made[name]), before, wanted)[0]
        numbers[f"{name}_background"] = psnr(made[name], scenes.pictures, background)
    for name in ("evaluations", "seconds"):
        numbers[name] = torch.full((len(wanted),), inversion.provenance[name] / len(wanted))
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="scenes")
    parser.add_argument("--steps", type=int, default=50, help="of every inversion and replay")
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0, help="number of the first held-out edit")
    parser.add_argument("--batch", type=int, default=25, help="scenes that are inverted together")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="measure these rows, again if they stand there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = stored(args)
    with torch.inference_mode():
        batches = None
        for name in args.only or [n for n in METHODS if n not in result["pictures"]]:
            batches = batches or held_out(args)
            found = [measure(scenes, METHODS[name], args.cfg, args.steps) for scenes in batches]
            result = stored(args)  # another process may have measured other rows
            result["pictures"][name] = {n: rounded(torch.cat([f[n].double() for f in found])) for n in found[0]}
            result["machine"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
            result["differences"] = differences(result["pictures"])
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps(result) + "\n")
            print(name, means(result["pictures"][name]), flush=True)
    print(table(result))
    for pair, (mean, low, high) in result["differences"].items():
        print(f"{pair}, back at CFG {args.cfg:g}: {mean:+.2f} ({low:+.2f} to {high:+.2f}) dB")


def stored(args) -> dict:
    """The stored result, if it has these settings."""
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "only")}
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    return result if result.get("settings") == settings else {"settings": settings, "pictures": {}}


def held_out(args) -> list:
    parts = load_miniature()
    edits = [held_out_edit(args.seed + i, KINDS[i % len(KINDS)]) for i in range(args.count)]
    return [Scenes(parts, edits[i:i + args.batch]) for i in range(0, len(edits), args.batch)]


def rounded(values) -> list:
    """Values for JSON, which has no nan: None where an edit leaves no background."""
    return [None if v != v else round(v, 4) for v in values.tolist()]


def means(row) -> dict:
    return {name: round(statistics.fmean(v for v in values if v is not None), 4) for name, values in row.items()}


def differences(measured) -> dict:
    """Paired bootstrap intervals of reconstruction at the higher guidance."""
    found = {}
    for a, b in ((name, method.over) for name, method in METHODS.items() if method.over):
        if a in measured and b in measured:
            pair = (torch.tensor(measured[n]["recon_cfg"], dtype=torch.double) for n in (a, b))
            found[f"{a} - {b}"] = [round(v, 4) for v in paired_bootstrap(*pair, torch.Generator().manual_seed(0))]
    return found


def table(result) -> str:
    """The means over the scenes, in the order of METHODS. tools/tables.py writes it into docs/benchmarks.md."""
    cfg = f"{result['settings']['cfg']:g}"
    lines = [f"| inversion | back at CFG 1 | back at CFG {cfg} | Inject: success | background | plain: success | "
             "background | row passes | seconds |", "|---|---|---|---|---|---|---|---|---|"]
    measured = {n: means(result["pictures"][n]) for n in METHODS if n in result["pictures"]}
    for name, row in measured.items():
        cells = [f"{row['recon_1']:.1f} dB", f"{row['recon_cfg']:.1f} dB"]
        for kind in ("inject", "plain"):
            cells += [f"{row[kind + '_success']:.0%}",
                      f"{row[kind + '_background']:.1f} dB"] if METHODS[name].edits else ["", ""]
        lines.append("| " + " | ".join([name, *cells, f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"]) + " |")
    ceiling = next(iter(measured.values()))["ceiling"]
    lines.append(f"| *autoencoder alone* | {ceiling:.1f} dB | {ceiling:.1f} dB | | | | | | |")
    return "\n".join(lines)
