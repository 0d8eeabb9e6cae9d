"""Object-aware Inversion and Reassembly for Image Editing. Yang, Ding, Wang, Chen, Zhuang, Shen, ICLR 2024.
arXiv:2310.12149

Each edited object has an inversion step that suits it best: a colour wants few, another shape many. The authors denoise
every object from its own step k with a prompt that changes this object alone, and cut it out by its mask M_k. They join
all cuts and the inversion's background at a common step,
    z = (1 - Σ M_k) · z* + Σ M_k · z_k,
and finish with the target prompt, after inverting a little way back to hide the seams.

Differs from the paper: all objects share one run. Until its own step the place of an object holds the source's latent,
which is the start that the authors give it. From there on it is free. Everywhere else the source stays. So there are no
late cuts to hide, the background stays exact, and inverting back is left out. A prompt for each object is the host's to
give: Conditioning (Set Mask) with the same masks, and Conditioning Set Timestep Range for the target's last steps. The
search for k, by CLIP's similarity and the background's error over all candidates, is left to the eye.
Checked against: the paper's equations.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.masks import Anchored
from ..host.batch import repeat_to_batch_size
from ..inversion.trajectory import Inversion


@dataclass(frozen=True, eq=False)
class ObjectAware(Anchored):
    """Holds the source outside the places of objects. Those of one run that hold the same INVERSION act as one: the
    first of them for all.

    place: [masks, h, w], the object's mask M_k at the latent's size.
    begins: the percent of the schedule from which it is edited, its k.
    """
    inversion: Inversion
    place: Tensor
    begins: float
    start, name = 0.0, "Object-Aware Blend"

    @dataclass
    class State:
        """free: [rows, h, w], the places that are edited at this step; None before the first."""
        free: Tensor | None = None

    def begin(self, run):
        require_rows(run, len(self.place), self.name)
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.begins, 1.0))

    def before(self, run, x, sigma):
        return super().before(run, x, sigma) if self._peers(run)[0] is self else x

    def after(self, run, x0, sigma):
        return super().after(run, x0, sigma) if self._peers(run)[0] is self else x0

    def _peers(self, run):
        return [e for e in run.editors if isinstance(e, ObjectAware) and e.inversion is self.inversion]

    def seen(self, run, x, sigma) -> Tensor:
        """The places that were free before this step: one that begins here begins with the source's latent. Those of a
        sampler's first step may have begun in another one."""
        free = run.state(self).free
        return self.mask(run, x, sigma) if free is None else free

    def mask(self, run, x, sigma) -> Tensor:
        m = torch.zeros(x.shape[0], *x.shape[-2:])
        for peer in self._peers(run):
            if run.within(sigma, peer.begins, 1.0):
                m = torch.maximum(m, repeat_to_batch_size(peer.place, x.shape[0]))
        run.state(self).free = m
        return m
