"""The reference branch: the source's features at the step where the target is.

They are not stored for fifty steps but computed again from the source's latent at this σ, which the INVERSION knows
exactly, so the branch never drifts. It is a call of its own, before the target's, whose forwards keep their shape and order:
a run with the branch on and no edit is bit-identical to one without. Kept features live for one σ.
"""
import comfy.samplers
from comfy.sampler_helpers import convert_cond


class Reference:
    """What the source shows at the present σ: `kept[id(inversion), site]`, filled by the editors' own patches in "read" mode."""

    def __init__(self, guider, inversions):
        self.inversions, self.kept, self.sigma = inversions, {}, None
        self.entries = [self._encode(guider, inversion) for inversion in inversions]

    @staticmethod
    def _encode(guider, inversion):
        device = guider.model_patcher.load_device
        clean = inversion.latents[-1].to(device)
        conds = {"positive": convert_cond(inversion.conditioning)}
        return comfy.samplers.process_conds(guider.inner_model, clean, conds, device, clean)["positive"]

    def clear(self):
        self.kept.clear()
        self.sigma = None

    def read(self, executor, model, x_in, timestep, sigma, readers, patch):
        """One call of the source at σ for each INVERSION that some reader holds; `patch(readers, conds)` gives its options."""
        if sigma == self.sigma:
            return
        self.clear()
        for inversion, entries in zip(self.inversions, self.entries):
            mine = [r for r in readers if r.inversion is inversion]
            if mine:
                x = inversion.at(sigma).to(x_in)
                executor(model, [entries], x, timestep[:1].expand(x.shape[0]), patch(mine, [entries]))
        self.sigma = sigma
