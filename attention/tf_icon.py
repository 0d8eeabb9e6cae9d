"""TF-ICON: Diffusion-Based Training-Free Cross-Domain Image Composition. Lu, Liu, Kong, ICCV 2023. arXiv:2307.12493

An object of a reference picture is set into a main picture. Both are inverted. With M the object's mask and M_u the
user's region around it, sampling starts from

    x_T = M · x_T^r + (1 - M_u) · x_T^m + (M_u - M) · z,   z ~ N(0, I).

Until τ_A (0.4 of the schedule) self-attention works on a composed field: the main picture's logits between its own
tokens, the reference's between the object's, and Q^m (K^r)^T between both. Until τ_B (0.8) the main picture's latent is
put back outside M_u.
Here every token brings its own query and key: the reference's in M, the main picture's outside M_u, the sampled
picture's between. One softmax of q k^T is then the field. The sampler goes on from the composed start by Euler's steps
(editing/latent_move.py).
Differs from the paper: the object's rows have Q^r (K^m)^T, where the authors transpose Q^m (K^r)^T. Between M and M_u
the authors have the sampled picture's logits alone, and Q^m (K^r)^T toward the object. The reference lies on a canvas
of the main picture's size, the object where it is to be. Pictures are inverted with their own prompts, not with the
authors' exceptional one. In joint attention of words and picture the composed queries look up the target's words too.
Checked against: the paper's equations, at every site of a run. Shilin-LU/TF-ICON@efc6945 (MIT) was read and not run,
for its start, its schedule, and which logits stand where.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.latent_move import Mover
from ..editing.masks import blend
from ..editing.sites import AttentionEdit, in_tiles, mask_of_rows, source_of
from ..host.batch import repeat_to_batch_size
from ..inversion.trajectory import Inversion


@dataclass(frozen=True, eq=False)
class Donor(AttentionEdit):
    """Keeps the queries and keys of a picture's self-attention, for another editor to read.

    end: the percent of the schedule until which it does.
    """
    inversion: Inversion
    end: float
    name = "Inject Composite"

    def reads(self, run, sigma):
        return run.within(sigma, 0.0, self.end)

    def keeps(self, run, site, sigma):
        return "qk" if site.kind == "self" and self.reads(run, sigma) else ""


@dataclass(frozen=True, eq=False)
class Composite(Mover, Donor):
    """Samples the composed picture.

    inversion: of the main picture.
    end: τ_A, in percent of the schedule.
    donor: of the reference.
    place, region: M and M_u, [masks, h, w] in {0, 1} at the latent's size.
    blend_end: τ_B, in percent of the schedule.
    seed: of z.
    """
    donor: Donor
    place: Tensor
    region: Tensor
    blend_end: float
    seed: int

    def begin(self, run):
        require_rows(run, len(self.place), self.name)
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, 0.0, max(self.end, self.blend_end)))

    def hands_on(self, run, sigma):
        return "the composed picture"

    def move(self, run, x, sigma):
        if run.state(self).shift is None:
            x = self._start(run, x, sigma)
        return self._held(run, x, run.shown(self.inversion, sigma), sigma)

    def before(self, run, x, sigma):
        begins = run.state(self).shift is None
        moved = super().before(run, x, sigma)
        if begins and run.coupled is not None:  # both latents of the solver begin with the composed one
            pair, sees = run.coupled.pair, run.coupled.sees
            pair[1 - sees] = blend(pair[sees], pair[1 - sees], self.region)
        return moved

    def after(self, run, x0, sigma):
        return self._held(run, super().after(run, x0, sigma), run.landing(self.inversion, sigma), sigma)

    def _start(self, run, x, sigma):
        """x_T, at whatever σ the run begins. Between M and M_u it is the main picture, noised anew by z."""
        sampling = run.guider.model_patcher.get_model_object("model_sampling")
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed)).to(x)
        clean = repeat_to_batch_size(self.inversion.latents[-1], x.shape[0]).to(x)
        between = sampling.noise_scaling(x.new_tensor(sigma), noise, clean)
        main, reference = (run.shown(inversion, sigma) for inversion in (self.inversion, self.donor.inversion))
        return blend(blend(between, reference, 1 - self.place), main, self.region)

    def _held(self, run, x, main, sigma):
        return blend(x, main, self.region) if run.within(sigma, 0.0, self.blend_end) else x

    def acts(self, run, site, sigma):
        return site.kind == "self" and self.reads(run, sigma)

    def attend(self, rows, site, q, k, v, source, attention):
        if in_tiles(self, rows, site, q):
            return attention(q, k, v)
        other = source_of(self.donor, rows, site)
        inside, near = (mask_of_rows(m, rows, site, q) >= 0.5 for m in (self.place, self.region))
        q, k = (torch.where(inside, theirs, torch.where(near, own, main))  # the composed field
                for theirs, main, own in ((other.q, source.q, q), (other.k, source.k, k)))
        return attention(q, k, v)
