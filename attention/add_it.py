"""Add-it: Training-Free Object Insertion in Images With Pretrained Diffusion Models. Tewel, Gal, Samuel, Atzmon, Wolf,
Chechik, ICLR 2025. arXiv:2411.07232

A prompt with an object more is sampled from new noise, while all its queries, words' and picture's, look up the source
picture beside their own tokens (weighted extended self-attention):

    A = softmax([Q_p; Q_t] [γ_s K_s; γ_p K_p; γ_t K_t]ᵀ / √d)    out = A [V_s; V_p; V_t]

with p the target's words, t its picture and s the source's picture. γ_s is 1 and γ_p = γ_t = γ a little more, which
balances what is kept and what is new. Flux's double blocks do so in the first third of the steps, its single blocks in
the first two thirds.
Scores are q·k, so γ on the target's queries and 1/γ on K_s are the same. Then an editor need not touch words' keys.

The paper's two other parts are other nodes'. Structure transfer is where sampling begins: x_t = (1 - σ) x0_s + σ·noise
at step 2 of 30, or 4 for a photo, as a sampler makes it of the source's latent and new noise. Subject-guided latent
blending, x_t <- m·x_t + (1 - m)·x_t,s once after half of the steps, m where the object's word is looked up, is Latent
Blend's, which holds the source in every later step too.

Differs from the paper: γ is given. Their code can also find one at step 5, by Brent's method, at which words look up
the target's picture 1.05 times as much as the source's. It smooths a photo by img2img at strength 0.1, and inverts it
with two fixed-point iterations; here any INVERSION serves, at its own latents. m is refined by SAM there, and here by
self-attention. On U-Nets, which the paper does not try, self-attention has no words.
Checked against: a whole run of NVlabs/addit@06135ef on a small Flux of equal weights, its blending off (numbers in
tests/data/add_it.json).
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..editing.sites import AttentionEdit, in_rows_of, source_of
from ..inversion.trajectory import Inversion

NAME = "Extended Attention"


@dataclass(frozen=True, eq=False)
class ExtendedAttention(AttentionEdit):
    """The target's queries look up the source's picture too.

    ends: {address of self-attention: the percent of the schedule until which it does}.
    start: the percent from which they do.
    weight: γ.
    """
    inversion: Inversion
    ends: Mapping[tuple, float]
    start: float
    weight: float
    roles: tuple = ("target",)
    name = NAME
    anew = True
    rank = -1  # others know no more keys than the grid has
    words_too = in_maps = True

    def begin(self, run):
        run.warn_if_idle(NAME, lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, self.start, max(self.ends.values()))

    def acts(self, run, site, sigma):
        return site.kind in ("self", "beside") and run.within(sigma, self.start, self.ends.get(site.address, 0.0))

    def keeps(self, run, site, sigma):
        return "kv" if site.kind == "self" and self.acts(run, site, sigma) else ""

    def attend(self, rows, site, q, k, v, source, attention):
        if len(q) % rows.count:
            raise ValueError(f"{NAME} is given {len(q)} of {rows.count} rows by another editor that has a mask for "
                             "each row, and looks up the source of all: give that editor one mask.")
        if site.kind == "beside":
            source = source_of(self, rows, replace(site, kind="self"))
        k_s, v_s = in_rows_of(q, source.k, source.v)
        return attention(self.weight * q, torch.cat([k, k_s / self.weight], 1), torch.cat([v, v_s], 1))  # Eq. 3
