"""Draws labelled tiles, and sheets of tiles, with Pillow. Every size is in proportion to the width of a tile."""
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, PALE, RULE = (255, 255, 255), (26, 26, 30), (110, 110, 118), (205, 205, 210)
INFERNO = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")
"""Ten evenly spaced colours of matplotlib's inferno (Smith and van der Walt, 2015). Its lightness rises evenly."""
SMALLEST, LARGEST = 256, 512  # px: least shorter side and greatest longer side of a tile
COLUMNS = 6


def colours(values: Tensor) -> Tensor:
    """Values [H, W] in 0..1 as inferno colours [H, W, 3]. NaN is black."""
    table = torch.tensor([list(bytes.fromhex(c)) for c in INFERNO]) / 255
    place = shown(values.cpu()) * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[..., None])


def heat(image: Tensor, values: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """A map [h, w] of any range laid over a picture [H, W, C] in 0..1. Returns the overlay [H, W, 3] and the map's
    (lowest, highest) value.

    The map is enlarged bicubically. Its lowest value leaves the picture dim and grey. Its highest value gets the palest
    colour.
    """
    image, low, high = image.float().cpu(), values.min().item(), values.max().item()
    large = F.interpolate(values[None, None].float(), image.shape[:2], mode="bicubic", align_corners=False)[0, 0]
    over = veil((large - low) / (high - low or 1))
    grey = image[..., :3].mean(-1, keepdim=True)
    return torch.lerp(.8 * grey.expand(-1, -1, 3), over[..., :3], over[..., 3:]), (low, high)


def veil(share: Tensor) -> Tensor:
    """A map [h, w] in 0..1 as colours with their opacity [h, w, 4], to be laid over a dim grey picture."""
    share = shown(share.cpu())
    return torch.cat([colours(share), .3 + .5 * share[..., None]], -1)


def shown(values: Tensor) -> Tensor:
    """Values as float32 in 0..1, and NaN as 0."""
    return values.float().nan_to_num(0, 1, 0).clamp(0, 1)


def rgb(image: Tensor) -> Tensor:
    """The three channels [..., 3] of a picture [..., C]. A picture of one or two has its first channel in each."""
    return image[..., :3] if image.shape[-1] > 2 else image[..., :1].expand(*image.shape[:-1], 3)


def tile(image: Tensor, label: str, lines: Sequence[tuple[str, str]] = (),
         scale: tuple[float, float] | None = None) -> Image.Image:
    """A picture [H, W, C] in 0..1 under its label. Below it stand the scale of the colours (lowest, highest) and the
    lines of key and value.

    Small pictures are enlarged by a whole number, so that each pixel is a square. Large pictures are reduced. An empty
    label takes no room.
    """
    picture = _fit(Image.fromarray((shown(reduced(rgb(image))) * 255).round().byte().cpu().numpy()))
    width, height = max(picture.width, SMALLEST * 3 // 4), picture.height
    unit = width / SMALLEST
    line, top = round(22 * unit), round(28 * unit) if label else 0
    page = Image.new("RGB", (width, top + height + round(8 * unit) + line * (len(lines) + (scale is not None))), PAPER)
    draw = ImageDraw.Draw(page)
    large, small = (ImageFont.load_default(round(s * unit)) for s in (18, 15))
    if label:
        draw.text((0, top - round(9 * unit)), label, INK, large, "ls")
    page.paste(picture, (0, top))
    draw.rectangle((0, top, picture.width - 1, top + height - 1), outline=RULE)
    y = top + height + round(24 * unit)
    if scale is not None:
        _scale(page, draw, y, scale, small, unit)
        y += line
    for key, value in lines:
        draw.text((0, y), key, PALE, small, "ls")
        draw.text((width, y), value, INK, small, "rs")
        y += line
    return page


def sheet(rows: Sequence[Sequence[Image.Image]], below: str = "") -> Tensor:
    """Rows of tiles on one page, [1, H, W, 3] in 0..1. below: a text under them all."""
    unit = max(t.width for row in rows for t in row) / SMALLEST
    gap, margin, between = round(14 * unit), round(22 * unit), round(20 * unit)
    heights = [max(t.height for t in row) for row in rows]
    width = max(sum(t.width for t in row) + gap * (len(row) - 1) for row in rows)
    font, line = ImageFont.load_default(round(18 * unit)), round(26 * unit)
    texts = _wrapped(below, font, width)
    page = Image.new("RGB", (width + 2 * margin, sum(heights) + between * (len(rows) - 1) + 2 * margin
                             + (between + line * len(texts) if texts else 0)), PAPER)
    y = margin
    for row, height in zip(rows, heights):
        x = margin
        for t in row:
            page.paste(t, (x, y))
            x += t.width + gap
        y += height + between
    for i, text in enumerate(texts):
        ImageDraw.Draw(page).text((margin, y + line * i), text, INK, font)
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]


def _wrapped(text: str, font, width: float) -> list[str]:
    """The lines of a text, none wider than a page unless a word is."""
    lines = []
    for part in text.splitlines():
        lines.append("")
        for word in part.split():
            longer = f"{lines[-1]} {word}".strip()
            lines[-1:] = [longer] if font.getlength(longer) <= width or not lines[-1] else [lines[-1], word]
    return lines


def grid(cells: Sequence[Tensor], columns: Sequence[str], rows: Sequence[str]) -> Tensor:
    """A page [B, H, W, 3] of pictures [B, h, w, C], row by row, under the columns' labels and right of the rows'.
    A single empty label of the rows takes no room."""
    pages = []
    for picture in range(max(len(cell) for cell in cells)):
        tiles = [tile(cell[picture % len(cell)], "") for cell in cells]
        width = max(t.width for t in tiles)
        tiles = [_widened(t, width) for t in tiles]
        heads = [_label(text, width, width) for text in columns]
        lines = [heads, *(tiles[i:i + len(columns)] for i in range(0, len(tiles), len(columns)))]
        if any(rows):
            side = min(math.ceil(max(map(_font(width).getlength, rows))), width * 3 // 4)
            lines = [[_label(text, side, width), *line] for text, line in zip(["", *rows], lines)]
        pages.append(sheet(lines))
    return torch.cat(pages)


def heatmaps(image: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """The sheet [1, H', W', 3] of one picture's heat maps, see `heat_rows`."""
    return sheet(heat_rows(image, maps))


def heat_rows(image: Tensor, maps: Mapping[str, Tensor]) -> list[list[Image.Image]]:
    """Rows of tiles: first the picture [H, W, C] in 0..1, then the map [h, w] of each word over it, with its scale."""
    tiles = [tile(image, "picture")]
    for word, values in maps.items():
        overlay, scale = heat(image, values)
        tiles.append(tile(overlay, word, scale=scale))
    return [tiles[i:i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]


def reduced(image: Tensor) -> Tensor:
    """A picture [H, W, C] as float32 [h, w, C] with no side over LARGEST. Each pixel is the mean of those it covers."""
    height, width = image.shape[:2]
    h, w = (max(1, round(side * min(1, LARGEST / max(height, width)))) for side in (height, width))
    if (h, w) == (height, width):
        return image.float()
    # one row at a time, so that memory stays small
    rows = [image[i * height // h:-(-(i + 1) * height // h)].float().mean(0) for i in range(h)]
    return F.adaptive_avg_pool1d(torch.stack(rows).mT, w).mT


def _fit(picture: Image.Image) -> Image.Image:
    times = -(-SMALLEST // min(picture.size))
    if times > 1 and times * max(picture.size) <= 2 * LARGEST:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    return picture


def _label(text: str, width: int, of: int) -> Image.Image:
    """A text in lines of a width, beside tiles that are `of` wide."""
    font, line = _font(of), round(24 * of / SMALLEST)
    first, *others = text.split() or [""]
    lines = [first]
    for word in others:
        longer = f"{lines[-1]} {word}"
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    page = Image.new("RGB", (width, line * len(lines)), PAPER)
    for i, words in enumerate(lines):
        ImageDraw.Draw(page).text((0, line * (i + 1) - line // 4), words, INK, font, "ls")
    return page


def _widened(page: Image.Image, width: int) -> Image.Image:
    wide = Image.new("RGB", (width, page.height), PAPER)
    wide.paste(page)
    return wide


def _font(width: int):
    """The font of labels beside tiles of a width."""
    return ImageFont.load_default(round(18 * width / SMALLEST))


def _scale(page, draw, y: int, scale: tuple[float, float], font, unit: float):
    """Draws the colour map as a bar between its lowest and highest value. The baseline of the text is y."""
    digits = max(0, 1 - math.floor(math.log10(scale[1]))) if 0 < scale[1] < math.inf else 2
    low, high = (f"{v:.{digits}f}" for v in scale)
    draw.text((0, y), low, INK, font, "ls")
    draw.text((page.width, y), high, INK, font, "rs")
    left, right = (round(draw.textlength(text, font) + 8 * unit) for text in (low, high))
    bar = colours(torch.linspace(0, 1, max(2, page.width - left - right)).expand(round(9 * unit), -1))
    page.paste(Image.fromarray((bar * 255).round().byte().numpy()), (left, y - round(10 * unit)))
