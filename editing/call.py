"""One of the host's calls of the network: which rows of its forwards belong to which prompt."""
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..host.tiles import TILES, keys

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Call:
    """One calc_cond_batch.

    mode: "read" (the reference's rows) or "write" (the host's own).
    x: the latents that it is given.
    levels: where it reads, all the σ of its rows.
    prompts: where it reads, the prompt of each cond list, as Reference names it.
    """
    run: "Run"
    mode: str
    conds: list
    sigma: float
    x: object
    levels: tuple = ()
    prompts: tuple = ()
    chunks: dict = field(default_factory=dict)

    @property
    def whole(self):
        """The latent of which x is all or a window."""
        return self.x if self.x.shape[-2:] == self.run.shape[-2:] else self.run.x

    def parts(self, options) -> list:
        """(index, uuid, role, entry) of each part of a forward's rows, in their order: of each chunk, and where another
        node cuts the latent into tiles, of each tile, which is its entry's area."""
        areas = options.get(TILES, [None] * len(options["uuids"]))
        if areas is None:
            raise ValueError("Another node shows the network a forward that is no part of the latent of "
                             f"{self.run.shape[-2]} x {self.run.shape[-1]} cells being sampled, and the "
                             f"{len(self.run.editors)} editors on this MODEL cannot tell which places it is of: remove "
                             "the node that tiles, turns or resizes the latent.")
        named = [(index, uuid, *self.chunk(index, uuid)) for index, uuid in keys(options)]
        return [(*rest, entry if area is None else {**entry, "area": area})
                for area, (*rest, entry) in zip(areas, named)]

    def chunk(self, index, uuid):
        """(role, entry) of one chunk of a forward, from its `cond_or_uncond` index and uuid.

        Where another list has an area, the host makes an entry of the same area here: its text, and so its tokens, are
        those of an entry of this list."""
        if (index, uuid) not in self.chunks:
            self.chunks[index, uuid] = self._chunk(index, uuid)
        return self.chunks[index, uuid]

    def _chunk(self, index, uuid):
        entry = next(e for e in self.conds[index] if e["uuid"] == uuid)
        text = entry["model_conds"].get("c_crossattn")
        owner = next(e for e in self.conds[index] if e["model_conds"].get("c_crossattn") is text)
        role = self.run.role(self.conds, index)
        prompt = owner["uuid"] if role == "null" else None
        entry = {**entry, "palimpsest_tokens": owner.get("palimpsest_tokens"), "palimpsest_prompt": prompt}
        if "area" in entry:  # of which the host leaves out what lies past an edge
            sizes, starts = entry["area"][:len(entry["area"]) // 2], entry["area"][len(entry["area"]) // 2:]
            ends = self.run.shape[-len(sizes):]
            entry["area"] = (*(min(size, end - start) for size, start, end in zip(sizes, starts, ends)), *starts)
        return role, entry

    def readers(self, index, edits) -> list:
        """Those of some edits that read what a read's cond list shows."""
        return [e for e in edits if "null" in e.roles or self.prompts[index] is None]
