"""One of the host's calls of the network: which rows of its forwards belong to which prompt."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from torch import Tensor

from ..host.batch import Chunk, chunks, equal_parts, no_part
from ..host.tiles import halves, with_tiles_located
from ..inversion.trajectory import Inversion
from .editor import overrides

if TYPE_CHECKING:
    from .editor import Editor
    from .run import Run


class Part(NamedTuple):
    """The rows of a forward that belong together.

    index: of their cond list, in the list that calc_cond_batch was given.
    uuid: of their cond entry.
    role: "target", "null" or "other".
    entry: the processed cond entry, with the "area" that they show, and what `Call` adds to it. An area of the whole
        latent is none.
    tile: the area that they show where another node cuts the latent into tiles.
    """
    index: int
    uuid: UUID
    role: str
    entry: dict
    tile: tuple | None = None

    @property
    def chunk(self) -> Chunk:
        """As the host's batch has it."""
        return Chunk(self.index, self.uuid, self.tile)


@dataclass(frozen=True)
class Call:
    """One calc_cond_batch.

    run: in which it happens.
    conds: the cond lists that are evaluated.
    sigma: the level of the step.
    x: the latents that it is given.
    inversion: of the rows, where the call reads the source; None where it is the host's own.
    levels: where it reads, all the σ of its rows.
    prompts: where it reads, the prompt of each cond list, as Reference names it.

    It adds two things to the entries. "palimpsest_tokens" are those of the entry's text. "palimpsest_prompt" is the
    prompt under which the source shows what these rows read, as Reference names it.
    """
    run: "Run"
    conds: list
    sigma: float
    x: Tensor
    inversion: Inversion | None = None
    levels: tuple = ()
    prompts: tuple = ()
    known: dict = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether the call reads the source."""
        return self.inversion is not None

    @property
    def whole(self) -> Tensor | None:
        """The latent of which x is all or a window."""
        return self.x if self.x.shape[-2:] == self.run.shape[-2:] else self.run.x

    @property
    def network(self):
        """The host's network that is called."""
        return self.run.guider.inner_model.diffusion_model

    def install(self, model_options: dict, editors: Iterable["Editor"]) -> dict:
        """model_options for this call, with the editors' patches around whatever stands there now.

        Editors that share an `install` function are installed by one call of it, so that they act together."""
        groups = {}
        for editor in editors:
            if overrides(editor, "install"):
                groups.setdefault(editor.install, []).append(editor)
        if groups:
            model_options = with_tiles_located(model_options, self)
        for function, group in groups.items():
            model_options = function(model_options, group, self)
        return model_options

    def parts(self, options: dict) -> list[Part]:
        """The parts of a forward with these transformer_options, in the order of its rows. Where another node cuts the
        latent into tiles, each tile has parts of its own."""
        if no_part(options):
            raise ValueError("Another node shows the network a forward that is no part of the latent of "
                             f"{self.run.shape[-2]} x {self.run.shape[-1]} cells being sampled, and the "
                             f"{len(self.run.editors)} editors on this MODEL cannot tell which cells it shows: remove "
                             "the node that tiles, turns or resizes the latent.")
        return [self.part(chunk) for chunk in chunks(options)]

    def split(self, options: dict, *tensors: Tensor) -> Iterator[tuple]:
        """(Part, its rows of each of the tensors) of a forward with these transformer_options."""
        found = self.parts(options)
        return zip(found, *(equal_parts(x, len(found)) for x in tensors))

    def part(self, chunk: Chunk) -> Part:
        """What the rows of a chunk are of.

        Where another list has an area, the host makes an entry of the same area here. Its text, and so its tokens, are
        those of an entry of this list."""
        key = chunk.index, chunk.uuid
        if key not in self.known:
            self.known[key] = self._part(*key)
        part = self.known[key]
        if chunk.area is None:
            return part
        return part._replace(entry={**part.entry, "area": chunk.area}, tile=chunk.area)

    def _part(self, index, uuid) -> Part:
        entry = next(e for e in self.conds[index] if e["uuid"] == uuid)
        text = entry["model_conds"].get("c_crossattn")
        owner = next(e for e in self.conds[index] if e["model_conds"].get("c_crossattn") is text)
        role = self.run.role(self.conds, index)
        prompt = owner["uuid"] if role == "null" else None
        entry = {**entry, "palimpsest_tokens": owner.get("palimpsest_tokens"), "palimpsest_prompt": prompt}
        if "area" in entry:  # the host leaves out of it what lies past an edge
            sizes, starts = halves(entry["area"])
            ends = self.run.shape[-len(sizes):]
            sizes = *(min(size, end - start) for size, start, end in zip(sizes, starts, ends)),
            entry["area"] = *sizes, *starts
            if sizes == ends:
                del entry["area"]
        return Part(index, uuid, role, entry)

    def readers(self, index: int, editors: Iterable["Editor"]) -> list["Editor"]:
        """Those of the editors that read what one cond list of a read call shows."""
        return [e for e in editors if "null" in e.roles or self.prompts[index] is None]
