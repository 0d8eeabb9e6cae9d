"""Inversion Report: a replay, its error at every level, and how white the noise is."""
import math

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...editing.editor import require_plain
from ...editing.inverting import check_guidance
from ...editing.replay import replay, retrace
from ...inversion.method import method_of
from ...metrics.drawing import INK, PALE, PAPER, RULE, SMALLEST, colours, sheet, tile
from ...metrics.pixels import psnr
from ...metrics.whiteness import white_range, whiteness
from ..edit_report import warn_if_not_finite
from ..search import aliases
from ..widgets import InversionType

OTHER = 0.5  # a picture further than this share of the norm from the inversion's clean latent is another picture
EXACT = 1e-8  # the curve's floor
NUMBERS = {  # number: (the tile above it, its label, its format)
    "vae_psnr": ("round trip", "PSNR to source", "{:.2f} dB"),
    "reconstruction_psnr": ("reconstruction", "PSNR to source", "{:.2f} dB"),
    "error": ("curve", "error at the end", "{:.2g} %"),
    "evaluations": ("curve", "row passes of inversion", "{:.0f}"),
    "seconds": ("curve", "seconds of inversion", "{:.2f}"),
    "mean": ("noise", "mean", "{:+.3f}"),
    "std": ("noise", "std", "{:.3f}"),
    "kl": ("noise", "KL to N(0, 1)", "{:.2g}"),
    "neighbours": ("noise", "neighbours", "{:+.3f}"),
}


class PalimpsestInversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestInversionReport", display_name="Inversion Report", category="palimpsest/report",
            description="Replays an inversion with its source prompt. Shows the result beside the VAE's round trip, "
                        "the error of the replay at each level, how white the noise is, and what the inversion cost.",
            **aliases("inversion quality", "reconstruction error", "check inversion", "is noise white", "PSNR"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the inversion."),
                InversionType.Input("inversion"),
                io.Vae.Input("vae"),
                io.Image.Input("image", tooltip="The picture that was inverted."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance of the replay. DDIM Invert: 1. Null-text and negative-prompt "
                                       "inversion: the CFG you edit at (papers: 7.5). EDICT, BDIA, Direct and DDPM: "
                                       "the CFG of their inversion."),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "The negative prompt of this guidance. Papers: empty. Not used at CFG 1.")),
            ],
            outputs=[io.Image.Output(display_name="sheet"), io.String.Output(display_name="numbers")],
            is_output_node=True)

    @classmethod
    def execute(cls, model, inversion, vae, image, cfg, negative=None) -> io.NodeOutput:
        require_plain(model, "Inversion Report")
        check_guidance("Inversion Report", cfg, negative)
        start = replay(model, inversion)
        image = vae.vae_encode_crop_pixels(image[..., :3])
        encoded = vae.encode(image)
        check_picture(model.get_model_object("latent_format").process_in(encoded), inversion)
        path, found = retrace(start, inversion, cfg, negative)
        pictures = {name: decode(vae, latent) for name, latent in (("round trip", encoded), ("reconstruction", found))}
        rows, errors, noise = len(found), path_errors(path, inversion), unit_noise(inversion)[:len(found)]
        warn_if_not_finite(image=image, **pictures, **{"error of the replay": errors})
        # of each video. A VAE may keep fewer frames than it is given
        frames = min(len(image), *map(len, pictures.values())) // rows
        image, *decoded = (first(video, rows, frames) for video in (image.float().cpu(), *pictures.values()))
        pictures = dict(zip(pictures, decoded))
        numbers = {
            **{n: psnr(pictures[name], image).unflatten(0, (rows, frames)).mean(1)
               for n, name in (("vae_psnr", "round trip"), ("reconstruction_psnr", "reconstruction"))},
            "error": 100 * errors[-1], **whiteness(noise)}
        spent = {n: inversion.provenance[n] for n in ("evaluations", "seconds") if n in inversion.provenance}
        numbers |= {n: torch.full((rows,), value / rows) for n, value in spent.items()}
        image, pictures = image[::frames], {name: shown[::frames] for name, shown in pictures.items()}
        picture, text = draw(inversion, image, pictures, noise, errors, numbers, cfg), write(inversion, numbers, cfg)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, ui=shown)


def check_picture(latents: Tensor, inversion):
    """ValueError unless these latents [B,C,…] in sampler space are those that were inverted."""
    clean = inversion.latents[-1][:inversion.pictures]
    if latents.shape != clean.shape:
        raise ValueError(f"The image encodes to {list(latents.shape)} (pictures, channels, height, width), but the "
                         f"INVERSION holds {list(clean.shape)}: connect the picture that was inverted, and the VAE "
                         "that encoded it.")
    apart = float((latents.to(clean) - clean).norm() / clean.norm())
    if apart > OTHER:
        raise ValueError(f"The image's latents differ from the INVERSION's by {apart:.0%} of their norm, but encoding "
                         f"explains at most {OTHER:.0%}: connect the picture that was inverted, and the VAE that "
                         "encoded it.")


def path_errors(path, inversion) -> Tensor:
    """The distance of each latent of a path from the INVERSION's at its level, over the norm of the latter: [S+1,B]."""
    known, rows = map(inversion.at, method_of(inversion).sigmas(inversion).tolist()), inversion.pictures
    return torch.stack([(x[:rows] - own[:rows]).flatten(1).norm(dim=1) / own[:rows].flatten(1).norm(dim=1)
                        for x, own in zip(path, known)])


def unit_noise(inversion) -> Tensor:
    """The noisiest latents [B,C,…,h,w], scaled to unit variance where they are noise."""
    sigma = float(inversion.sigmas[0])
    signal = 1 - sigma if inversion.fingerprint.prediction == "flow" else inversion.fingerprint.sigma_data
    return inversion.latents[0] / math.hypot(signal, sigma)


def decode(vae, latents: Tensor) -> Tensor:
    """Pictures [B,H,W,C], of video VAEs too."""
    images = vae.decode(latents)
    return images.reshape(-1, *images.shape[-3:]).float().cpu()


def first(images: Tensor, rows: int, frames: int) -> Tensor:
    """The first frames of each of some videos [B·F,H,W,C]."""
    return images.unflatten(0, (rows, -1))[:, :frames].flatten(0, 1)


def draw(inversion, image, pictures, noise, errors, numbers, cfg) -> Tensor:
    """The sheet [1,H,W,3]: a row of tiles per picture, with each tile's numbers below it."""
    difference = (pictures["reconstruction"] - image).abs().mean(-1)
    high = difference.nan_to_num(0, 0, 0).max().item() or 1.
    grey = noise.flatten(1, -3)[:, :1].movedim(1, -1) / 6 + .5  # the first channel, three standard deviations each way
    heads = {"source": (f"source, {image.shape[2]} x {image.shape[1]}", image),
             "round trip": ("VAE round trip", pictures["round trip"]),
             "reconstruction": (f"replay at CFG {cfg:g}", pictures["reconstruction"]),
             "difference": ("|replay - source|", colours(difference / high)),
             "noise": (f"latent at sigma {float(inversion.sigmas[0]):.3g}", grey.expand(-1, -1, -1, 3))}
    rows, white, sigmas = [], ranges(noise.shape[1:]), method_of(inversion).sigmas(inversion).tolist()
    for i in range(len(image)):
        row = [tile(images[i], label if i == 0 else "", lines(name, numbers, i, white),
                    (0., high) if name == "difference" else None) for name, (label, images) in heads.items()]
        # both paths start at the same latent, so the first error is 0
        plot = curve(errors[1:, i].tolist(), sigmas[1:], max(SMALLEST, row[0].width))
        title = f"{inversion.method}: error of the replay" if i == 0 else ""
        rows.append([*row, tile(plot, title, lines("curve", numbers, i, white))])
    return sheet(rows)


def curve(errors: list, sigmas: list, side: int) -> Tensor:
    """A square picture [H,W,3] of errors at descending σ, evenly spaced, on a logarithmic scale in percent.

    errors: shares. Those that are not finite are left out.
    """
    shares = {level: max(e, EXACT) for level, e in enumerate(errors) if math.isfinite(e)}
    low = math.floor(math.log10(min(shares.values(), default=EXACT)))
    high = max(low + 1, math.ceil(math.log10(max(shares.values(), default=1))))
    unit, last = 2 * side / SMALLEST, max(1, len(errors) - 1)  # drawn twice as large, then reduced
    left, right, top, bottom = 62 * unit, 2 * side - 12 * unit, 14 * unit, 2 * side - 40 * unit
    page = Image.new("RGB", (2 * side, 2 * side), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(round(13 * unit))

    def at(level, share):
        return left + (right - left) * level / last, bottom - (bottom - top) * (math.log10(share) - low) / (high - low)

    for decade in range(low, high + 1):
        y = at(0, 10. ** decade)[1]
        pen.line((left, y, right, y), RULE, 2)
        pen.text((left - 6 * unit, y), f"{10. ** (decade + 2):g} %".replace("e-0", "e-"), PALE, font, "rm")
    for level, place in ((0, "lt"), (last // 2, "mt"), (last, "rt")):
        x = at(level, 1)[0]
        pen.line((x, bottom, x, bottom + 4 * unit), PALE, 2)
        sigma = f"{sigmas[min(level, len(sigmas) - 1)]:.3g}"
        pen.text((x, bottom + 8 * unit), sigma if level else f"sigma {sigma}", PALE, font, place)
    pen.line([at(i, share) for i, share in shares.items()], INK, round(2 * unit), "curve")
    return torch.from_numpy(np.asarray(page.reduce(2)).astype(np.float32) / 255)


def ranges(shape) -> dict[str, str]:
    """{number: the range of 95 of 100 white latents of a shape, in words}."""
    return {name: (f"  (white < {high:.2g})" if low == 0 else
                   f"  (white {(low + high) / 2:.0f} ± {(high - low) / 2:.3f})")
            for name, (low, high) in white_range(shape).items()}


def lines(place: str, numbers: dict[str, Tensor], i: int, white: dict[str, str]) -> list[tuple[str, str]]:
    """The lines under one tile of row i."""
    return [(key, form.format(numbers[name][i].item()) + white.get(name, ""))
            for name, (where, key, form) in NUMBERS.items() if where == place and name in numbers]


def write(inversion, numbers: dict[str, Tensor], cfg) -> str:
    """The numbers as text, one `name: value` per line. In a batch the picture's number stands before the name."""
    head = f"{inversion.method}, {inversion.schedule}, replayed at CFG {cfg:g}"
    rows = inversion.pictures
    return "\n".join([head, *(f"{i + 1} " * (rows > 1) + f"{name}: {NUMBERS[name][2].format(numbers[name][i].item())}"
                              for i in range(rows) for name in NUMBERS if name in numbers)])
