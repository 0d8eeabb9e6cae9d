"""How the host fills a batch: it repeats rows, and it puts the rows of several prompts into one forward."""
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from comfy.utils import repeat_to_batch_size
from torch import Tensor

__all__ = ["TILES", "Chunk", "chunks", "equal_parts", "no_part", "options_of", "repeat_to_batch_size", "split"]
TILES = "palimpsest.tiles"  # the option that names the area of each chunk, where another node cuts the latent


class Chunk(NamedTuple):
    """The rows of a forward that belong together.

    index: of their cond list, in the list that calc_cond_batch was given.
    uuid: of their cond entry.
    area: the tile of the latent that they show, where another node cuts it into tiles.
    """
    index: int
    uuid: UUID
    area: tuple | None = None


def chunks(options: dict) -> list[Chunk]:
    """The chunks of a forward with these transformer_options, in their order. Those of one tile stand together."""
    prompts = list(zip(options["cond_or_uncond"], options["uuids"]))
    areas = options.get(TILES) or [None] * len(prompts)
    return [Chunk(*prompt, area) for prompt, area in zip(prompts * (len(areas) // len(prompts)), areas)]


def no_part(options: dict) -> bool:
    """Whether a forward shows the network something that is no part of the latent."""
    return TILES in options and options[TILES] is None


def split(options: dict, *tensors: Tensor) -> Iterator[tuple]:
    """(Chunk, its rows of each of the tensors) of a forward."""
    found = chunks(options)
    return zip(found, *(equal_parts(x, len(found)) for x in tensors))


def equal_parts(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """The rows of a forward in as many equal parts."""
    if len(x) % count:
        raise ValueError(f"A forward has {len(x)} rows for {count} prompts, so nobody can tell which rows are whose: "
                         "remove the node that adds rows to it or leaves some out.")
    return x.chunk(count)


def options_of(options: dict, chunk: Chunk) -> dict:
    """transformer_options as a forward of this chunk alone would have them."""
    return {**options, "cond_or_uncond": [chunk.index], "uuids": [chunk.uuid], TILES: [chunk.area]}
