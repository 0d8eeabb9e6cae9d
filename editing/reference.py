"""The reference branch: the source's features at the step where the target is.

They are not stored for fifty steps. The INVERSION knows the source's latent at this σ exactly, so they are computed
again from it and the branch never drifts. It is a call of its own, before the target's, whose forwards keep their shape
and order: a run with the branch on and no edit is bit-identical to one without. A forward of one row takes longer than
half a forward of two, so small latents are read for several steps at once, and so is a source that is read at one level
for all of them. Kept features live for the steps of one forward.

The target's rows read what the source shows under its own prompt. The null prompt's rows read what it shows under the
null prompt, a second entry of the same call. It is there only where an editor acts on those rows.
"""
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import torch
from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.guiders import encoded
from ..host.options import uncached
from ..host.sampling import rows_may_mix
from .call import Call, Part
from .checks import inversions_read

if TYPE_CHECKING:
    from .editor import Editor
    from .run import Run
    from .sites import Rows, Site

ROWS, CELLS = 3, 8192  # of one forward that several σ share: rows, and latent cells of all of them
LEAST = 1e-6  # where the network is asked at σ = 0


def levels_together(rows, size, most=ROWS, cells=CELLS) -> int:
    """How many σ, each with `rows` latents of size ([frames,] height, width), may share a forward of limited rows and
    cells."""
    return max(1, min(most, cells // math.prod(size)) // rows)


def null_entries(conds: Iterable[list], sigma: float) -> dict[UUID, list]:
    """{uuid: [entry]} of the null prompt's processed cond lists: each of their texts that has a part at σ once, over
    the whole picture and without the target's ControlNets."""
    texts = {}
    for entry in (e for entries in conds for e in entries):
        if entry.get("timestep_end", 0) <= sigma <= entry.get("timestep_start", math.inf):
            texts.setdefault(id(entry["model_conds"].get("c_crossattn")), entry)
    # the source may be read at a level that the range of the target's text does not hold
    of_target = {"area", "mask", "mask_strength", "strength", "control", "gligen", "timestep_start", "timestep_end"}
    return {e["uuid"]: [{k: v for k, v in e.items() if k not in of_target}] for e in texts.values()}


def _rows(entry) -> int:
    """The rows of an entry's embedding."""
    text = entry["model_conds"].get("c_crossattn")
    return 1 if text is None else text.cond.shape[0]


def _encoded(guider, inversion) -> list:
    """The cond list of the source's prompt."""
    clean = inversion.latents[-1].to(guider.model_patcher.load_device)
    return encoded(guider, inversion.conditioning, clean, clean)


def _readers(run, inversion, where, sigma) -> list["Editor"]:
    """The editors that read an INVERSION at σ, or elsewhere for it."""
    return [e for e in run.editors if e.read_inversion() is inversion and e.where == where and e.reads(run, sigma)]


@dataclass(frozen=True)
class Kept:
    """What the source shows at a site.

    features: {name: (rows, tokens, channels)}, level by level in their rows.
    grid: of the site.
    beside: how many tokens are looked up there beside the picture's.
    levels: {σ: the number of its rows}; several σ may have the same.
    pictures: the rows of each.
    """
    features: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple = ()
    beside: int = 0
    levels: Mapping[float, int] = field(default_factory=dict)
    pictures: int = 1


class Reference:
    """What the source shows at the σ that were read last.

    A prompt is None for the source's own, the uuid of the null prompt's entry for that one.

    sources: (INVERSION, `Editor.where`) that some editor reads; entries: of each, its prompt's cond list; mixed: of
    each, whether rows of different levels may share a forward.
    levels: {(its id and where, prompt): the σ that were read for}.
    kept: {(its id and where, prompt, kind and address of a site, area of a tile or None): Kept}.
    reading, pictures, rows, source: of the call that reads now, its cond lists, its rows at each level, {σ: which of
    these levels}, and (id of its INVERSION, where).
    """

    def __init__(self, run: "Run"):
        self.steps = run.sigmas[:-1].tolist()
        self.sources = [(inversion, where) for where in sorted({e.where for e in run.editors})
                        for inversion in inversions_read(e for e in run.editors if e.where == where)]
        self.entries = [_encoded(run.guider, inversion) for inversion, _ in self.sources]
        self.mixed = [rows_may_mix(run.guider.model_patcher, i.conditioning) for i, _ in self.sources]
        self.levels: dict[tuple, tuple] = {}
        self.kept: dict[tuple, Kept] = {}
        self.reading: list = []
        self.pictures = 1
        self.rows: dict[float, int] = {}
        self.source: tuple = ()

    def keep(self, call: Call, part: Part, site: "Site", features: dict[str, Tensor]):
        """Keeps what a part of a forward shows at a site."""
        key = self.source, call.prompts[part.index], site.kind, site.address, part.entry.get("area")
        self.kept[key] = Kept(features, site.grid, site.beside, self.rows, self.pictures)

    def kept_for(self, editor: "Editor", rows: "Rows", site: "Site") -> Kept:
        """What the source shows to some rows at a site, in their area or in the whole latent."""
        prompt, area = rows.entry.get("palimpsest_prompt"), rows.entry.get("area")
        key = (id(editor.read_inversion()), editor.where), prompt, site.kind, site.address
        kept = self.kept.get((*key, area)) or self.kept.get((*key, None))
        if kept is None and any(found[:4] == key for found in self.kept):
            raise ValueError("Another node cuts the source into tiles, none of which is the target's area (height, "
                             f"width, y, x) of {area or rows.call.run.shape[-2:]}: remove that node, or what gives the "
                             "target another area.")
        return kept or Kept()

    def clear(self):
        self.kept.clear()
        self.levels.clear()

    def read_alone(self):
        """From now on reads again at every call of the network, as for a solver that calls it
        with two latents at one σ."""
        self.clear()
        self.mixed = [False] * len(self.mixed)

    def read(self, run: "Run", executor: Callable, model, x_in: Tensor, timestep: Tensor, model_options: dict,
             nulls: dict):
        """One call of the source, at σ and the next steps, for each INVERSION that some editor reads and that was not
        read at σ. nulls: `null_entries` of this evaluation."""
        sigma = float(timestep[0])
        for i, (inversion, where) in enumerate(self.sources):
            readers, source = _readers(run, inversion, where, sigma), (id(inversion), where)
            prompts = {None: self.entries[i]} if readers else {}
            if any("null" in e.roles for e in readers):
                prompts |= nulls
            self._forget(source, sigma)
            prompts = {prompt: entries for prompt, entries in prompts.items()
                       if (source, prompt) not in self.levels}
            if prompts:
                self._read(run, executor, model, x_in, timestep, model_options, i, prompts)

    def _forget(self, source, sigma):
        """Drops what was read of a source for other σ."""
        stale = {key for key, levels in self.levels.items() if key[0] == source and sigma not in levels}
        self.levels = {key: levels for key, levels in self.levels.items() if key not in stale}
        self.kept = {key: kept for key, kept in self.kept.items() if key[:2] not in stale}

    def _read(self, run, executor, model, x_in, timestep, model_options, i, prompts):
        sigma, (inversion, where), conds = float(timestep[0]), self.sources[i], list(prompts.values())
        texts = (_rows(entry) for prompt, entries in prompts.items() if prompt for entry in entries)
        self.pictures = math.lcm(inversion.batch, *texts)
        alone = tuple(prompts) == (None,)  # what the null prompt says may change from step to step
        together = levels_together(self.pictures, inversion.shape[1:]) if alone and self.mixed[i] else 1
        readers = {level: mine for level in self._ahead(sigma, len(self.steps) if alone and where[1] else together)
                   if (mine := _readers(run, inversion, where, level))}
        asked = {level: run.read_at(inversion, where, level) for level in readers}
        at = list(dict.fromkeys(asked.values()))[:together]
        self.rows = {level: at.index(read) for level, read in asked.items() if read in at}
        levels = tuple(self.rows)
        x = torch.cat([repeat_to_batch_size(run.shown(inversion, level), self.pictures) for level in at]).to(x_in)
        call = Call(run, conds, sigma, x, inversion, levels, tuple(prompts))
        options = call.install(uncached(model_options), dict.fromkeys(e for level in levels for e in readers[level]))
        self.reading, self.source = conds, (id(inversion), where)
        sigmas = timestep.new_tensor(at).clamp(min=LEAST)
        try:
            executor(model, conds, x, sigmas.repeat_interleave(self.pictures), options)
        finally:
            self.reading = []
        self.levels |= {(self.source, prompt): levels for prompt in prompts}

    def _ahead(self, sigma, together) -> list:
        """σ and the steps after it, as many as share a forward. If a solver goes between the steps,
        each level is read alone."""
        if sigma not in self.steps:
            self.mixed = [False] * len(self.mixed)
            return [sigma]
        first = self.steps.index(sigma)
        return self.steps[first:first + together]
