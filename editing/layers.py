"""Which self-attention of the network an edit acts on, in one notation for every node: `d2.2-9, m0, u0.4`.

A layer is named by a section (d: down, m: middle, u: up), the number of a transformer in that section and, after a dot,
the number of a layer in that transformer. All count from 0 in the order in which the network runs them. Each number may
be a range. Without the dot it means all layers of the transformer; the letter alone means the whole section. Flux has
two sections of blocks with one layer each (d: double, s: single), as in `d0-18, s20-37`.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, NamedTuple

from torch import Tensor

from ..host.network import resolutions
from ..inversion.trajectory import Inversion
from .checks import require_rows
from .sites import AttentionEdit

LETTERS = {"input": "d", "middle": "m", "output": "u", "double": "d", "single": "s"}
ITEM = re.compile(r"([dmsu])(?:(\d+)(?:-(\d+))?(?:\.(\d+)(?:-(\d+))?)?)?")


class Layer(NamedTuple):
    """One self-attention.

    section: its letter.
    transformer, number: as the notation counts them.
    address: the host's, as Site has it.
    resolution: of its grid, as Site has it.
    """
    section: str
    transformer: int
    number: int
    address: tuple
    resolution: float


def self_attention_layers(unet) -> list[Layer]:
    """Every self-attention of the host's network, in the order in which they run."""
    return numbered(resolutions(unet))


def numbered(found: Mapping[tuple, float]) -> list[Layer]:
    """The layers of {address: resolution}, in the order in which they run."""
    layers, transformers = [], {letter: [] for letter in LETTERS.values()}
    for address, resolution in found.items():
        section, block, depth = address
        seen = transformers[LETTERS[section]]
        if block not in seen:
            seen.append(block)
        layers.append(Layer(LETTERS[section], seen.index(block), depth, address, resolution))
    return layers


def parse_layers(text, unet) -> frozenset:
    """The addresses that a list like "d2.2-9, m0, u0.4" names. ValueError on what the model does not have."""
    return parse_numbers(text, self_attention_layers(unet), "This MODEL")


def parse_numbers(text, known: Sequence[Layer], whose="The word") -> frozenset:
    """The same of layers by their numbers."""
    chosen = set()
    for item in filter(None, (part.strip().lower() for part in re.split(r"[,\n]", text))):
        match = ITEM.fullmatch(item)
        if not match:
            raise ValueError(f'"{item}" names no layer: write a section, a transformer and a layer, as in '
                             f"'d2.2-9, m0, u0.4', or on Flux 'd0-18, s20-37'. {whose} has {_listed(known)}.")
        section, *numbers = match.groups()
        first, last, layer, top = (None if n is None else int(n) for n in numbers)
        transformers, layers = _range(first, last), _range(layer, top)
        mine = [p for p in known if p.section == section and (transformers is None or p.transformer in transformers)
                and (layers is None or p.number in layers)]
        found = ({p.transformer for p in mine}, transformers), ({p.number for p in mine}, layers)
        if not mine or any(some < set(named or ()) for some, named in found):
            raise ValueError(f'"{item}" names a layer that {whose[0].lower()}{whose[1:]} does not have: it has '
                             f"{_listed(known)}.")
        chosen.update(p.address for p in mine)
    return frozenset(chosen)


def _range(first, last):
    return None if first is None else range(first, (first if last is None else last) + 1)


def listed(unet) -> str:
    """The layers of a network with their resolution, as in "d0-1 (1), d2-3.0-9 (1/2), m0 (1/4)"."""
    return _listed(self_attention_layers(unet))


def _listed(known) -> str:
    transformers = [(section, number, len(mine), mine[0].resolution) for (section, number), mine in
                    ((key, list(found)) for key, found in groupby(known, lambda p: p[:2]))]
    text = []
    for (section, count, resolution), found in groupby(transformers, lambda t: (t[0], *t[2:])):
        numbers = [number for _, number, _, _ in found]
        layers = f".0-{count - 1}" if count > 1 else ""
        side = "1" if resolution == 1 else f"1/{round(1 / resolution)}" if resolution else ""
        text.append(f"{section}{_span(numbers)}{layers}{f' ({side})' if resolution else ''}")
    return ", ".join(text)


def _span(numbers):
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def decoder(unet, resolution) -> frozenset:
    """The addresses of the up section's layers of at least this resolution, or of its finest; on a transformer those of
    its last section's latter half (on Flux s20-37)."""
    layers = self_attention_layers(unet)
    mine = [p for p in layers if p.section == "u"]
    if not mine:
        last = [p for p in layers if p.section == layers[-1].section]
        return frozenset(p.address for p in last[len(last) // 2 + 1:] or last)
    limit = min(resolution, max(p.resolution for p in mine))
    return frozenset(p.address for p in mine if p.resolution >= limit)


def coarse(unet, resolution) -> frozenset:
    """The addresses of all layers of at most this resolution, or of the coarsest."""
    limit = max(resolution, min(p.resolution for p in self_attention_layers(unet)))
    return frozenset(p.address for p in self_attention_layers(unet) if p.resolution <= limit)


def roles(null_too) -> tuple:
    """The rows that an edit acts on: the target's, and the null prompt's where wanted."""
    return ("target", "null") if null_too else ("target",)


@dataclass(frozen=True, eq=False)
class SelfAttentionEdit(AttentionEdit):
    """An edit of self-attention at some layers, between two percents of the schedule.

    layers: their addresses.
    start, end: the percents.
    roles: the rows that it acts on.
    needs: what of the source it reads there.
    masks: its masks, each [B, …].
    """
    inversion: Inversion | None
    layers: frozenset
    start: float
    end: float
    roles: tuple = ("target",)
    needs: ClassVar[Iterable[str]] = "qk"

    @property
    def masks(self) -> Sequence[Tensor]:
        return ()

    def begin(self, run):
        for mask in self.masks:
            require_rows(run, len(mask), self.name)
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return site.kind == "self" and site.address in self.layers and self.reads(run, sigma)

    def keeps(self, run, site, sigma):
        return self.needs if self.acts(run, site, sigma) else ()
