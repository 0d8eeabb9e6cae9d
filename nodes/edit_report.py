"""Reports the measures of an edit as a picture and as text."""
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..host.canvas import log
from ..metrics.drawing import colours, reduced, rgb, sheet, tile
from ..metrics.edits import CHANGED, edit_numbers
from ..metrics.masks import TWO_CELLS, grow
from .search import aliases

NUMBERS = {  # number: (its tile, its label, its format)
    "reconstruction_psnr": ("reconstruction", "PSNR to source", "{:.2f} dB"),
    "reconstruction_ssim": ("reconstruction", "SSIM to source", "{:.4f}"),
    "psnr": ("edited", "PSNR to source", "{:.2f} dB"),
    "ssim": ("edited", "SSIM to source", "{:.4f}"),
    "background_psnr": ("difference", "background PSNR", "{:.2f} dB"),
    "background_ssim": ("difference", "background SSIM", "{:.4f}"),
    "changed": ("difference", f"changed by > {CHANGED}", "{:.1f} %"),
    "target_psnr": ("target", "PSNR of edited", "{:.2f} dB"),
    "target_mask_psnr": ("target", "the same inside mask", "{:.2f} dB"),
    "edit_share": ("mask", "edit", "{:.1f} %"),
    "background_share": ("mask", "background", "{:.1f} %"),
}

ROWS = 16  # as many as a page can show


def check(source: Tensor, edited: Tensor, **others: Tensor | None) -> dict[str, Tensor]:
    """The given inputs by name, on the CPU, pictures in three channels. Single pictures are repeated to the batch.
    ValueError if sizes differ."""
    given = dict(source=source, edited=edited, **{name: t for name, t in others.items() if t is not None})
    given = {name: t.reshape(-1, *t.shape[-2:]) if name == "mask" else rgb(t) for name, t in given.items()}
    batch, size = max(len(t) for t in given.values()), source.shape[1:3]
    mask = given.get("mask")
    if mask is not None and mask.min() == mask.max():  # Load Image gives a small black mask for a picture without one
        given["mask"] = mask[:, :1, :1].expand(-1, *size)
    for name, t in given.items():
        if t.shape[1:3] != size:
            raise ValueError(f"{name} is {t.shape[2]}x{t.shape[1]} and source is {size[1]}x{size[0]}: VAE Encode crops "
                             "sizes that are not multiples of its factor (8 on SD). Scale and crop the source and its "
                             "mask to such a multiple before VAE Encode (Upscale Image, crop center), and connect that "
                             "picture everywhere.")
        if len(t) not in (1, batch):
            raise ValueError(f"{name} holds {len(t)} pictures and the largest input {batch}: connect one for all, or "
                             f"{batch}.")
    warn_if_not_finite(**{name: t for name, t in given.items() if name != "mask"})
    return {name: t.cpu().expand(batch, *t.shape[1:]) for name, t in given.items()}


def warn_if_not_finite(**pictures: Tensor):
    """One warning that names the pictures with NaN or inf."""
    bad = {name: int((~t.isfinite()).sum()) for name, t in pictures.items()
           if not (t.amin() + t.amax()).isfinite()}  # both are NaN if a value is, and take no memory
    if bad:
        said = " and ".join(f"{name} has {n} of {pictures[name].numel()}" for name, n in bad.items())
        log.warning("%s values that are NaN or infinite: run the VAE in fp32 (--fp32-vae), or repair the node that "
                    "made them.", said)


class PalimpsestEditReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestEditReport",
            display_name="Edit Report",
            category="palimpsest/report",
            description="Shows pictures side by side and measures what was kept and what changed.",
            **aliases("compare images", "before and after", "side by side", "PSNR", "SSIM", "image difference",
                      "measure edit", "background preservation"),
            inputs=[
                io.Image.Input("source", tooltip="The picture before the edit. One is enough for a whole batch."),
                io.Image.Input("edited", tooltip="The edited picture. A batch gives one row each."),
                io.Image.Input("reconstruction", optional=True, tooltip=(
                    "The source replayed without an edit, or its VAE round trip. Shows the loss of inversion.")),
                io.Image.Input("target", optional=True, tooltip=(
                    "The exact result of the edit, if it is known, for example from Miniature Scene.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "The area of the edit (1). Background numbers use the pixels outside it, after it grows by "
                    f"{TWO_CELLS} px: two cells of an SD latent, as far as a decoder smears.")),
                io.String.Input("about", optional=True, force_input=True, tooltip=(
                    "A text to write below the pictures, such as the settings of Attention Inject.")),
            ],
            outputs=[io.Image.Output(display_name="sheet"), io.String.Output(display_name="numbers")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, source, edited, reconstruction=None, target=None, mask=None, about="") -> io.NodeOutput:
        given = check(source, edited, reconstruction=reconstruction, target=target, mask=mask)
        bar = ProgressBar(1)

        def tick(done, total):
            throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        numbers = edit_numbers(**given, tick=tick)
        picture, text = draw(given, numbers, about), write(numbers)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, ui=shown)


def draw(given: dict[str, Tensor], numbers: dict[str, Tensor], about: str = "") -> Tensor:
    """The sheet [1, H, W, 3]. Each picture has a row of tiles, with the numbers below each tile. Of more than ROWS
    pictures, ROWS are drawn, evenly spaced. about: a text below them all."""
    batch, height, width, _ = given["source"].shape
    drawn = torch.linspace(0, batch - 1, min(batch, ROWS)).round().int().tolist()
    if len(drawn) < batch:
        about = f"{len(drawn)} of {batch} pictures are drawn, evenly spaced. All are measured.\n{about}".strip()
        given = {name: [t[i] for i in drawn] for name, t in given.items()}
        numbers = {name: n[drawn] for name, n in numbers.items()}
    differences, high = zip(*map(difference, given["edited"], given["source"]))
    high = max(high) or 1.
    tiles = {  # name: label, pictures
        "source": (f"source, {width} x {height}", given["source"]),
        "reconstruction": ("reconstruction", given.get("reconstruction")),
        "edited": ("edited", given["edited"]),
        "difference": ("|edited - source|", [colours(d / high) for d in differences]),
        "target": ("exact target", given.get("target")),
        "mask": ("mask, grown", [shades(m) for m in given["mask"]] if "mask" in given else None),
    }

    def head(name, label, i):
        text = label if i == 0 else ""
        if len(drawn) == batch:
            return text
        number = f"{drawn[i] + 1}" if name == "source" else ""  # as in the text of the numbers
        return ": ".join(filter(None, (number, text))) or " "  # an empty one takes no room

    return sheet([[tile(images[i], head(name, label, i), lines(name, numbers, i),
                        (0., high) if name == "difference" else None)
                   for name, (label, images) in tiles.items() if images is not None] for i in range(len(drawn))], about)


def difference(edited: Tensor, source: Tensor) -> tuple[Tensor, float]:
    """(the channels' mean of |edited - source| at a tile's size [h, w], its highest finite value),
    for two pictures [H, W, C]."""
    rows = [(e.float() - s.float()).abs().mean(-1, keepdim=True) for e, s in zip(edited.split(1), source.split(1))]
    found = torch.cat(rows)
    return reduced(found)[..., 0], found.nan_to_num(0, 0, 0).max().item()


def shades(mask: Tensor) -> Tensor:
    """The mask [H, W] at the size of a tile [h, w, 3]. The area it grows to is grey."""
    return reduced(torch.maximum(mask, .45 * grow((mask > 0).byte()[None], TWO_CELLS)[0])[..., None]).expand(-1, -1, 3)


def printed(name: str, value: Tensor) -> str:
    """A number with its unit. Shares are in percent."""
    form = NUMBERS[name][2]
    return form.format(100 * value if "%" in form else value)


def lines(place: str, numbers: dict[str, Tensor], i: int) -> list[tuple[str, str]]:
    """The lines under one tile of row i. nan is written as n/a: there was no pixel to measure, or one with NaN."""
    return [(key, "n/a" if numbers[name][i].isnan() else printed(name, numbers[name][i]))
            for name, (where, key, _) in NUMBERS.items() if where == place and name in numbers]


def write(numbers: dict[str, Tensor]) -> str:
    """The numbers as text, one `name: value unit` per line. In a batch the picture's number stands before the name.
    Where the mask leaves no pixel, those of the background are left out."""
    batch = len(numbers["psnr"])

    def measured(name, i):
        return not name.startswith("background_") or name == "background_share" or numbers["background_share"][i] > 0

    return "\n".join(f"{i + 1} " * (batch > 1) + f"{name}: {printed(name, numbers[name][i])}"
                     for i in range(batch) for name in NUMBERS if name in numbers and measured(name, i))
