"""Which self-attention of a U-Net an edit acts on, in one notation for every node: `d2.2-9, m0, u0.4`.

A place is a section (d: down, m: middle, u: up), the number of a transformer in that section and, after a dot, the
number of a layer in that transformer, all counted from 0 in the order in which the network runs them. Each number may
be a range; without the dot all layers of a transformer are meant, and the letter alone is the whole section.
"""
import re
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ..host.unet import positions
from .sites import AttentionEdit

LETTERS = {"input": "d", "middle": "m", "output": "u"}
ITEM = re.compile(r"([dmu])(?:(\d+)(?:-(\d+))?(?:\.(\d+)(?:-(\d+))?)?)?")


class Place(NamedTuple):
    """One self-attention: section letter, transformer, layer; the host's position; its share of the latent's side."""
    section: str
    block: int
    layer: int
    position: tuple
    share: float


def places(unet) -> list:
    """Every self-attention of the host's U-Net, in the order in which they run."""
    found, numbers = [], {letter: [] for letter in LETTERS.values()}
    for position, share in positions(unet).items():
        seen = numbers[LETTERS[position[0]]]
        if position[1] not in seen:
            seen.append(position[1])
        found.append(Place(LETTERS[position[0]], seen.index(position[1]), position[2], position, share))
    return found


def parse_layers(text, unet) -> frozenset:
    """The positions that a list like "d2.2-9, m0, u0.4" names. ValueError on what the model does not have."""
    known, chosen = places(unet), set()
    for item in filter(None, (part.strip().lower() for part in re.split(r"[,\n]", text))):
        match = ITEM.fullmatch(item)
        if not match:
            raise ValueError(f'"{item}" names no layer: write a section (d, m, u), a transformer and a layer, as in '
                             f"'d2.2-9, m0, u0.4'. This MODEL has {listed(unet)}.")
        section, *numbers = match.groups()
        first, last, layer, top = (None if n is None else int(n) for n in numbers)
        blocks, layers = _range(first, last), _range(layer, top)
        mine = [p for p in known if p.section == section and (blocks is None or p.block in blocks)
                and (layers is None or p.layer in layers)]
        if not mine or {p.block for p in mine} < set(blocks or ()) or {p.layer for p in mine} < set(layers or ()):
            raise ValueError(f'"{item}" names a layer that this MODEL does not have: it has {listed(unet)}.')
        chosen.update(p.position for p in mine)
    return frozenset(chosen)


def _range(first, last):
    return None if first is None else range(first, (first if last is None else last) + 1)


def listed(unet) -> str:
    """The places of a U-Net with their share of the latent's side, as in "d0-1 (1), d2-3.0-9 (1/2), m0 (1/4)"."""
    blocks = [(section, block, len(mine), mine[0].share) for (section, block), mine in
              ((key, list(found)) for key, found in groupby(places(unet), lambda p: p[:2]))]
    text = []
    for (section, count, share), found in groupby(blocks, lambda b: (b[0], *b[2:])):
        numbers = [block for _, block, _, _ in found]
        layers = f".0-{count - 1}" if count > 1 else ""
        text.append(f"{section}{_span(numbers)}{layers} ({'1' if share == 1 else f'1/{round(1 / share)}'})")
    return ", ".join(text)


def _span(numbers):
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def decoder(unet, share) -> frozenset:
    """The up section where its grid's side is at least `share` of the latent's, or its finest grid."""
    mine = [p for p in places(unet) if p.section == "u"]
    limit = min(share, max(p.share for p in mine))
    return frozenset(p.position for p in mine if p.share >= limit)


def coarse(unet, share) -> frozenset:
    """Wherever the grid's side is at most `share` of the latent's, or the coarsest grid."""
    limit = max(share, min(p.share for p in places(unet)))
    return frozenset(p.position for p in places(unet) if p.share <= limit)


def roles(null_too) -> tuple:
    """The rows that an edit acts on: the target's, and the null prompt's where wanted."""
    return ("target", "null") if null_too else ("target",)


@dataclass(frozen=True, eq=False)
class SelfAttentionEdit(AttentionEdit):
    """An edit of self-attention at some layers, from the start to the end percent of the schedule, of the rows of some
    `roles`. `name`: the node's, for messages; `needs`: what of the source it reads there; `masks`: its masks, each [B,
    …]."""
    inversion: object
    layers: frozenset
    start: float
    end: float
    roles: tuple = ("target",)
    needs, masks = "qk", ()

    def begin(self, run):
        for mask in self.masks:
            if run.shape[0] % len(mask):
                raise ValueError(f"{self.name} has {len(mask)} masks, the latent being sampled {run.shape[0]} rows: "
                                 f"the rows must be a multiple of {len(mask)} (Repeat Latent Batch).")
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return site.kind == "self" and site.position in self.layers and self.reads(run, sigma)

    def keeps(self, run, site, sigma):
        return self.needs if self.acts(run, site, sigma) else ""
