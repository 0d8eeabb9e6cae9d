"""The reference branch: the source's features at the step where the target is.

They are not stored for fifty steps but computed again from the source's latent at this σ, which the INVERSION knows
exactly, so the branch never drifts. It is a call of its own, before the target's, whose forwards keep their shape and
order: a run with the branch on and no edit is bit-identical to one without. A forward of one row takes longer than half
a forward of two, so small latents are read for several steps at once; kept features live for the steps of one forward.

The target's rows read what the source shows under its own prompt. The null prompt's rows read what it shows under the
null prompt, a second entry of the same call, which is there only where an editor acts on those rows.
"""
import math

import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond
from comfy.utils import repeat_to_batch_size

ROWS, CELLS = 3, 8192  # of one forward that several σ share: rows, and latent cells of all of them


def levels_together(rows, size, most=ROWS, cells=CELLS) -> int:
    """How many σ may share a forward of at most so many rows and cells, with `rows` latents of size (height, width) at
    each."""
    return max(1, min(most, cells // (size[0] * size[1])) // rows)


def null_entries(conds) -> dict:
    """{uuid: [entry]} of the null prompt's processed cond lists: each of their texts once, over the whole picture and
    without the target's ControlNets."""
    texts = {}
    for entry in (e for entries in conds for e in entries):
        texts.setdefault(id(entry["model_conds"].get("c_crossattn")), entry)
    of_target = {"area", "mask", "mask_strength", "strength", "control", "gligen"}
    return {e["uuid"]: [{k: v for k, v in e.items() if k not in of_target}] for e in texts.values()}


def _rows(entry) -> int:
    """The rows of an entry's embedding."""
    text = entry["model_conds"].get("c_crossattn")
    return 1 if text is None else text.cond.shape[0]


class Reference:
    """What the source shows at the σ that were read last, `levels[id(inversion), prompt]`.

    prompt: None for the source's own, the uuid of the null prompt's entry for that one.
    kept: [id(inversion), prompt, *site, area of a tile or None], filled by the editors' own patches in "read" mode, σ
    by σ in its rows.
    reading, pictures: the cond lists of the call under way, and its rows at each σ.
    may_mix(inversion): whether rows of different σ may share a forward.
    """

    def __init__(self, guider, inversions, sigmas, may_mix):
        self.inversions, self.steps, self.kept, self.levels, self.reading = inversions, sigmas[:-1].tolist(), {}, {}, []
        self.mixed = [may_mix(i) for i in inversions]
        self.entries = [self._encode(guider, inversion) for inversion in inversions]

    @staticmethod
    def _encode(guider, inversion):
        device = guider.model_patcher.load_device
        clean = inversion.latents[-1].to(device)
        conds = {"positive": convert_cond(inversion.conditioning)}
        return comfy.samplers.process_conds(guider.inner_model, clean, conds, device, clean)["positive"]

    def keep(self, inversion, call, index, site, area, features):
        """What one cond list of a read call shows at a site, of a tile where it has an area: {name: (rows, tokens,
        channels)}."""
        key = id(inversion), call.prompts[index], site.kind, site.address, area
        self.kept[key] = {"grid": site.grid, "levels": call.levels, "pictures": self.pictures, **features}

    def clear(self):
        self.kept.clear()
        self.levels.clear()

    def read_alone(self):
        """Has every call of the network read anew, as where a solver asks it for two latents at one σ."""
        self.clear()
        self.mixed = [False] * len(self.mixed)

    def read(self, executor, model, x_in, timestep, sigma, readers, nulls, patch, shown):
        """One call of the source, at σ and the next steps, for each INVERSION that some reader holds and that was not
        read at σ.

        readers(σ): the editors that read there; nulls: what `null_entries` gives, of this evaluation; patch(readers,
        conds, x, levels, prompts) gives the call's options; shown(inversion, σ) the latents."""
        for i, inversion in enumerate(self.inversions):
            def mine(level):
                return [r for r in readers(level) if r.inversion is inversion]

            wanted = {}
            if mine(sigma):
                wanted = {None: self.entries[i]} | (nulls if any("null" in r.roles for r in mine(sigma)) else {})
            self._forget(inversion, sigma)
            wanted = {prompt: entries
                      for prompt, entries in wanted.items() if (id(inversion), prompt) not in self.levels}
            if wanted:
                self._read(executor, model, x_in, timestep, sigma, i, wanted, mine, patch, shown)

    def _forget(self, inversion, sigma):
        """Drops what was read of an INVERSION at other σ."""
        stale = {key for key, levels in self.levels.items() if key[0] == id(inversion) and sigma not in levels}
        self.levels = {key: levels for key, levels in self.levels.items() if key not in stale}
        self.kept = {key: found for key, found in self.kept.items() if key[:2] not in stale}

    def _read(self, executor, model, x_in, timestep, sigma, i, wanted, mine, patch, shown):
        inversion, prompts, self.reading = self.inversions[i], tuple(wanted), list(wanted.values())
        texts = (_rows(entry) for prompt, entries in wanted.items() if prompt for entry in entries)
        pictures = self.pictures = math.lcm(inversion.batch, *texts)
        together = levels_together(pictures, inversion.shape[-2:]) if self.mixed[i] and prompts == (None,) else 1
        levels = tuple(level for level in self._ahead(sigma, together) if mine(level))
        chosen = list(dict.fromkeys(r for level in levels for r in mine(level)))
        x = torch.cat([repeat_to_batch_size(shown(inversion, level), pictures) for level in levels]).to(x_in)
        rows = timestep.new_tensor(levels).repeat_interleave(pictures)
        try:
            executor(model, self.reading, x, rows, patch(chosen, self.reading, x, levels, prompts))
        finally:
            self.reading = []
        self.levels |= {(id(inversion), prompt): levels for prompt in prompts}

    def _ahead(self, sigma, together) -> list:
        """σ and the steps after it, as many as share a forward; a solver that goes between the steps has every level
        read alone."""
        if sigma not in self.steps:
            self.mixed = [False] * len(self.mixed)
            return [sigma]
        first = self.steps.index(sigma)
        return self.steps[first:first + together]
