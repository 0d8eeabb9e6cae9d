"""The reference branch: the source's features at the step where the target is.

They are not stored for fifty steps but computed again from the source's latent at this σ, which the INVERSION knows
exactly, so the branch never drifts. It is a call of its own, before the target's, whose forwards keep their shape and order:
a run with the branch on and no edit is bit-identical to one without. A forward of one row takes longer than half a forward
of two, so small latents are read for several steps at once; kept features live for the steps of one forward.
"""
import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond

ROWS, CELLS = 3, 8192  # of one forward that several σ share: rows, and latent cells of all of them


def levels_together(rows, size, most=ROWS, cells=CELLS) -> int:
    """How many σ may share a forward of at most so many rows and cells, with `rows` latents of size (height, width) at each."""
    return max(1, min(most, cells // (size[0] * size[1])) // rows)


class Reference:
    """What the source shows at the σ that were read last, `levels[id(inversion)]`: `kept[id(inversion), site]`, filled by the
    editors' own patches in "read" mode, σ by σ in its rows. may_mix(inversion): whether rows of different σ may share a
    forward."""

    def __init__(self, guider, inversions, sigmas, may_mix):
        self.inversions, self.steps, self.kept, self.levels = inversions, sigmas[:-1].tolist(), {}, {}
        self.together = [levels_together(i.batch, i.shape[-2:]) if may_mix(i) else 1 for i in inversions]
        self.entries = [self._encode(guider, inversion) for inversion in inversions]

    @staticmethod
    def _encode(guider, inversion):
        device = guider.model_patcher.load_device
        clean = inversion.latents[-1].to(device)
        conds = {"positive": convert_cond(inversion.conditioning)}
        return comfy.samplers.process_conds(guider.inner_model, clean, conds, device, clean)["positive"]

    def clear(self):
        self.kept.clear()
        self.levels.clear()

    def read(self, executor, model, x_in, timestep, sigma, readers, patch):
        """One call of the source, at σ and the next steps, for each INVERSION that some reader holds and that was not read at σ.

        readers(σ): the editors that read there; patch(readers, conds, levels) gives the call's options."""
        for inversion, entries, together in zip(self.inversions, self.entries, self.together):
            if sigma in self.levels.get(id(inversion), ()):
                continue
            self.kept = {key: found for key, found in self.kept.items() if key[0] != id(inversion)}
            mine = {level: [r for r in readers(level) if r.inversion is inversion] for level in self._ahead(sigma, together)}
            levels = self.levels[id(inversion)] = tuple(level for level in mine if mine[level] and mine[sigma])
            if levels:
                x = torch.cat([inversion.at(level) for level in levels]).to(x_in)
                rows = timestep.new_tensor(levels).repeat_interleave(inversion.batch)
                executor(model, [entries], x, rows, patch(list(dict.fromkeys(sum(mine.values(), []))), [entries], levels))

    def _ahead(self, sigma, together) -> list:
        """σ and the steps after it, as many as share a forward; a solver that goes between the steps has every level read
        alone."""
        if sigma not in self.steps:
            self.together = [1] * len(self.together)
            return [sigma]
        first = self.steps.index(sigma)
        return self.steps[first:first + together]
