"""Style Aligned, Cross-Image Attention and Attention Reweight as their nodes make them."""
import torch
from palimpsest.editing.sites import Site
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

import tiny
from explicit import HEADS, SIDE
from runs import Case, invert, kept

SITE = Site("self", ("output", 0, 0), (SIDE, SIDE), 0.5, HEADS)


@kept
def case(family="sd15", **kwargs):
    return Case(family, steps=3, **kwargs)


def style(c, start=0.0, end=1.0, shift=0.69, scale=1.0, normalise=True, layers="", null_too=False, inversion=None,
          model=None,
          batch=False):
    return PalimpsestStyleAligned.execute(model or c.model, start, end, shift, scale, normalise, layers, null_too,
                                          None if batch else inversion or c.inversion).result[0]


def inject(c, model):
    return PalimpsestAttentionInject.execute(model, c.inversion, c.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "", "").result[0]


@kept
def other(family="sd15"):
    """An inversion of another picture."""
    c = case(family)
    return invert(c.model, c.source, tiny.latent(c.model, seed=9, std=2.0), 3)[0]


def cross(c, start=0.0, end=1.0, coarse_end=1.0, adain_start=1.0, swap_guidance=1.0, contrast=1.0, layers="",
          model=None,
          appearance=None, **masks):
    return PalimpsestCrossImageAttention.execute(model or c.model, appearance or other(c.family), start, end,
                                                 coarse_end,
                                                 adain_start, swap_guidance, contrast, layers, **masks).result[0]


def half():
    m = torch.zeros(1, 64, 64)
    m[:, :, :32] = 1
    return m


def weigh(c, word_weights="", restrained="", region_words="", threshold=0.3, start=0.0, end=1.0, mask=None, model=None):
    return PalimpsestAttentionReweight.execute(model or c.model, word_weights, restrained, region_words, threshold,
                                               start, end,
                                               mask=mask).result[0]
