"""Cross-Image Attention for Zero-Shot Appearance Transfer. Alaluf, Garibi, Patashnik, Averbuch-Elor, Cohen-Or, SIGGRAPH
2024. arXiv:2311.03335

The structure picture is sampled anew from its inverted noise. Its queries look up the keys and values of an appearance
picture, in the decoder's self-attention on its two finest grids:

    A = softmax(Q K_app^T / √d)    A' = clip((A - μ(A)) β + μ(A), 0, 1)    out = A' V_app

with the contrast β (1.67) and μ(A) the mean of a row, 1/n of n keys.
Appearance guidance reads the prediction without the exchange too, ε_×, and takes ε_× + α (ε - ε_×), with α falling from
3.5 to half of it over the run. AdaIN gives each channel of the latent the appearance's mean and deviation, between two
masks of the object where they are given.
A' is no linear function of A, because of the clip: most of a peaked row is below μ (β - 1) / β, where the clip holds it
at zero. So maps are made for what contrast changes, (A' - A) V_app, some queries at a time. Without contrast none is.
A V_app comes from whatever computes attention there, so that another pack's patch and other edits act. Where attention
joins words and picture, the appearance's part of a row is contrasted, and words keep theirs.
Differs from the paper: K_app and V_app are read at the inversion's own latents. AdaIN acts on the predicted x0 with the
appearance's clean latent, which any sampler carries on. The authors' code, but not the paper, takes K and V of the
structure at every fifth step before the 40th. This is left out, since it brings back the structure's own looks in six
of 57 steps. Their network also runs FreeU, for which the host has a node. On transformers the layers are ours, untuned.
K_app has its place in it there, if places turn keys: what lies alike is matched more.
Checked against: the paper's equations, on explicit maps. Its layers, steps, contrast, guidance and AdaIN are those of
garibida/cross-image-attention@ee2080c (MIT), read and not run.
"""
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..editing.layers import SelfAttentionEdit, decoder, self_attention_layers
from ..editing.masks import mask_for
from ..editing.predictions import Asked, asked_by
from ..editing.sites import in_rows_of
from ..host.batch import repeat_to_batch_size

CELLS = 2 ** 24  # of maps that are held at once


def contrasted(q: Tensor, k: Tensor, v: Tensor, heads: int, contrast: float) -> Tensor:
    """(A' - A) v for q [rows, queries, channels] and k, v [rows, keys, channels]."""
    q, k, v = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mean = 1 / k.shape[2]  # μ(A)

    def of_some(queries):
        maps = (queries @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # A
        return (((maps - mean) * contrast + mean).clamp(0, 1) - maps) @ v  # A' - A

    size = max(1, CELLS // (len(q) * heads * k.shape[2]))
    return torch.cat([of_some(part) for part in q.split(size, 2)], 2).transpose(1, 2).flatten(2)


def two_finest(unet) -> frozenset:
    """The up section's self-attention on its two finest grids; on a transformer `decoder`'s."""
    mine = [p for p in self_attention_layers(unet) if p.section == "u"]
    if not mine:
        return decoder(unet, 0)
    finest = sorted({p.resolution for p in mine})[-2:]
    return frozenset(p.address for p in mine if p.resolution in finest)


def statistics(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of each channel of x [B, C, …, h, w], each [B, C, 1, …], where the mask [B, h, w] is 1."""
    m, over = mask_for(mask, x).expand_as(x[:, :1]), tuple(range(2, x.ndim))
    count = m.sum(over, keepdim=True)
    mean = (m * x).sum(over, keepdim=True) / count
    return mean, ((m * (x - mean) ** 2).sum(over, keepdim=True) / (count - 1).clamp(min=1) + 1e-5).sqrt()


@dataclass(frozen=True, eq=False)
class CrossImage(SelfAttentionEdit):
    """The structure's queries look up the appearance, whose INVERSION this is.

    fine: those of the layers that end at `end`.
    coarse_end: the percent of the schedule at which the other layers end.
    contrast: β.
    guidance: α at the run's start.
    adain_start: the percent from which AdaIN acts.
    structure, appearance: masks [masks, h, w] of the object in {0, 1}, at the latent's size.
    """
    _: KW_ONLY
    fine: frozenset
    coarse_end: float = 0.7
    contrast: float = 1.67
    guidance: float = 3.5
    adain_start: float = 0.2
    structure: Tensor
    appearance: Tensor
    needs, name = "kv", "Cross-Image Attention"
    lends = True
    mixes = True

    @property
    def masks(self):
        return [self.structure, self.appearance]

    def reads(self, run, sigma):
        return run.within(sigma, self.start, max(self.end, self.coarse_end))

    def acts(self, run, site, sigma):
        end = self.end if site.address in self.fine else self.coarse_end
        return site.kind == "self" and site.address in self.layers and run.within(sigma, self.start, end)

    def attend(self, rows, site, q, k, v, source, attention):
        if asked_by(self, rows.entry):
            return attention(q, k, v)
        out = attention(q, source.k, source.v)  # A V_app
        if self.contrast == 1:
            return out
        change = contrasted(q, *in_rows_of(q, source.k, source.v), site.heads, self.contrast)
        if site.joint:  # of what the row gives to all
            share = (attention(q, source.k, source.v + 1) - out).float().unflatten(-1, (site.heads, -1))
            change = (change.unflatten(-1, (site.heads, -1)) * share.mean(-1, keepdim=True)).flatten(-2)
        return out + change.to(out)

    def asks(self, run, sigma):
        """The prediction without the exchange."""
        return {"plain": Asked("target", "target")} if self.guidance > 1 and self.reads(run, sigma) else {}

    def answered(self, run, x0, sigma):
        if not x0.names:
            return x0.target
        return x0["plain"] + self._alpha(run, sigma) * (x0.target - x0["plain"])  # ε_× + α (ε - ε_×), in x0

    def _alpha(self, run, sigma):
        steps = run.sigmas[:-1].tolist()
        passed = sum(step > sigma for step in steps) / max(1, len(steps) - 1)
        return self.guidance + min(1, passed) * (max(self.guidance / 2, 1) - self.guidance)

    def after(self, run, x0, sigma):
        if not run.within(sigma, self.adain_start, 1.0):
            return x0
        clean = repeat_to_batch_size(self.inversion.latents[-1], len(x0)).to(x0)
        (mean, std), (mean_a, std_a) = statistics(x0, self.structure), statistics(clean, self.appearance)
        m = mask_for(self.structure, x0)
        return x0 * (1 - m) + ((x0 - mean) / std * std_a + mean_a) * m  # AdaIN
