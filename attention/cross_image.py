"""Cross-Image Attention for Zero-Shot Appearance Transfer. Alaluf, Garibi, Patashnik, Averbuch-Elor, Cohen-Or, SIGGRAPH
2024. arXiv:2311.03335

The structure picture is sampled anew from its inverted noise, and its queries look up the keys and values of an
appearance picture, in the decoder's self-attention on its two finest grids:

    A = softmax(Q K_app^T / √d)    A' = clip((A - μ(A)) β + μ(A), 0, 1)    out = A' V_app

with the contrast β (1.67) and μ(A) the mean of a row, 1/n of n keys. Appearance guidance reads the prediction without
the exchange too, ε = ε_× + α (ε - ε_×) with α falling from 3.5 to half of it over the run, and AdaIN gives each channel
of the latent the appearance's mean and deviation, between two masks of the object where they are given. The clip makes
A' no linear function of A: β out + (1 - β) mean(V_app) would be, but most of a peaked row is below μ (β - 1) / β, where
the clip holds it at zero. So here maps are made, some queries at a time, for what contrast changes, (A' - A) V_app;
without contrast none is. A V_app comes from whatever computes attention there, so that another pack's patch and other
edits act.
Differs from the paper: K_app and V_app are read at the inversion's own latents; AdaIN acts on the predicted x0, with
the appearance's clean latent, which any sampler carries on. The authors' code, but not the paper, takes K and V of the
structure at every fifth step before the 40th, which brings the structure's own looks back in six of 57 steps; that is
left out. Checked against garibida/cross-image-attention@ee2080c (MIT).
"""
from dataclasses import dataclass

import torch

from ..editing.layers import SelfAttentionEdit, self_attention_layers
from ..host.batch import repeat_to_batch_size

NAME = "Cross-Image Attention"
CELLS = 2 ** 24  # of maps that are held at once


def contrasted(q, k, v, heads, contrast):
    """(A' - A) v for q [rows, queries, channels] and k, v [rows, keys, channels]."""
    q, k, v = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mean = 1 / k.shape[2]

    def some(part):
        maps = (part @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return (((maps - mean) * contrast + mean).clamp(0, 1) - maps) @ v

    size = max(1, CELLS // (len(q) * heads * k.shape[2]))
    return torch.cat([some(part) for part in q.split(size, 2)], 2).transpose(1, 2).flatten(2)


def two_finest(unet) -> frozenset:
    """The up section's self-attention on its two finest grids."""
    mine = [p for p in self_attention_layers(unet) if p.section == "u"]
    shares = sorted({p.resolution for p in mine})[-2:]
    return frozenset(p.address for p in mine if p.resolution in shares)


def statistics(x, mask):
    """(mean, deviation) of each channel of x [B, C, h, w], each [B, C, 1, 1], where the mask [B, h, w] is 1."""
    m = repeat_to_batch_size(mask, len(x))[:, None].to(x)
    count = m.sum((2, 3), keepdim=True)
    mean = (m * x).sum((2, 3), keepdim=True) / count
    return mean, ((m * (x - mean) ** 2).sum((2, 3), keepdim=True) / (count - 1).clamp(min=1) + 1e-5).sqrt()


@dataclass(frozen=True, eq=False)
class CrossImage(SelfAttentionEdit):
    """inversion: of the appearance; coarse_end: the end for layers outside `fine`; guidance: α at the run's start;
    adain_start: percent from which AdaIN acts; structure, appearance: masks [masks, h, w] of the object in {0, 1}."""
    lends = True
    fine: frozenset = frozenset()
    coarse_end: float = 0.7
    contrast: float = 1.67
    guidance: float = 3.5
    adain_start: float = 0.2
    structure: torch.Tensor = None
    appearance: torch.Tensor = None
    needs, name = "kv", NAME

    @property
    def masks(self):
        return [self.structure, self.appearance]

    def reads(self, run, sigma):
        return run.within(sigma, self.start, max(self.end, self.coarse_end))

    def acts(self, run, site, sigma):
        end = self.end if site.address in self.fine else self.coarse_end
        return site.kind == "self" and site.address in self.layers and run.within(sigma, self.start, end)

    def attend(self, rows, site, q, k, v, source, attention):
        if rows.entry.get("palimpsest_own") is self:
            return attention(q, k, v)
        out = attention(q, source.k, source.v)
        if self.contrast == 1:
            return out
        # where another node cuts q into tiles
        k, v = (x.reshape(len(q), -1, x.shape[-1]) for x in (source.k, source.v))
        return out + contrasted(q, k, v, site.heads, self.contrast).to(out)

    def conditions(self, run, conds, sigma):
        """With the target's lists once more, for the prediction without the exchange."""
        roles = [None if c is None else run.role(conds, i) for i, c in enumerate(conds)]
        found = [i for i, role in enumerate(roles)
                 if role == "target"] if self.guidance > 1 and self.reads(run, sigma) else []
        run.memory(self)["pairs"] = {i: len(conds) + n for n, i in enumerate(found)}
        return [*conds, *([{**entry, "palimpsest_own": self} for entry in conds[i]] for i in found)]

    def predicted(self, run, x0s, x, sigma):
        pairs = run.memory(self).pop("pairs")
        if not pairs:
            return x0s
        x0s, added = x0s[:min(pairs.values())], x0s
        for i, own in pairs.items():
            x0s[i] = added[own] + self._alpha(run, sigma) * (added[i] - added[own])
        return x0s

    def _alpha(self, run, sigma):
        steps = run.sigmas[:-1].tolist()
        passed = sum(step > sigma for step in steps) / max(1, len(steps) - 1)
        return self.guidance + min(1, passed) * (max(self.guidance / 2, 1) - self.guidance)

    def after(self, run, x0, sigma):
        if not run.within(sigma, self.adain_start, 1.0):
            return x0
        clean = repeat_to_batch_size(self.inversion.latents[-1], len(x0)).to(x0)
        (mean, std), (mean_a, std_a) = statistics(x0, self.structure), statistics(clean, self.appearance)
        m = repeat_to_batch_size(self.structure, len(x0))[:, None].to(x0)
        return x0 * (1 - m) + ((x0 - mean) / std * std_a + mean_a) * m
