"""Taming Rectified Flow for Inversion and Editing (RF-Edit). Wang, Pu, Qi, Guo, Ma, Huang, Chen, Li, Shan, ICML 2025.
arXiv:2411.04746. FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing. Deng, He, Mei, Wang, Tang, ICML
2025. arXiv:2412.07517. Stable Flow: Vital Layers for Training-Free Image Editing. Avrahami, Patashnik, Fried,
Nemchinov, Aberman, Lischinski, Cohen-Or, CVPR 2025. arXiv:2411.14430. KV-Edit: Training-Free Image Editing for Precise
Background Preservation. Zhu, Zhang, Shao, Tang, 2025. arXiv:2502.17363

All four sample the target while some tokens hold features of the source, in attention that joins words and picture:
    RF-Edit      V <- V_s          of all tokens, in the latter half of the single blocks, in the first steps
    FireFlow     V <- V_s          of all tokens, in all single blocks, in the middle of the first step
    Stable Flow  K, V <- K_s, V_s  of the picture's tokens, in the nine blocks that are vital to the picture
    KV-Edit      K, V <- K_s, V_s  of the picture's tokens outside a mask, in all blocks; it is held there (its Eq. 8)
FireFlow's code also adds, Q <- Q + Q_s. What the source holds is not banked, but read again at its own latents.

RF-Edit's and KV-Edit's bank is a level behind: the step from t_i to t_{i-1} is given what the inversion's step from
t_{i-1} to t_i began with, at the latent and level t_{i-1} (`lower`). In a midpoint step's second half both are at the
same middle. FireFlow asks at the noisiest level only on the way back, so nothing is shared there. KV-Edit's form
without inversion is FlowEdit's path, noised anew at every level, where the source is read at the target's own.

Differs from the papers: where prompts differ in length, words keep the target's features. KV-Edit's code begins at the
noisiest level with the latent of the one before; here it is the INVERSION's. Its later scale on attention to the
background is left out. Stable Flow's code gives its source the cleanest noisy latent in the second step, then those of
two steps before; here each level has its own. On U-Nets, which the papers do not try, the picture's tokens are all.
Checked against: whole runs of wangjiangshan0725/RF-Solver-Edit@3388e29, HolmesShuan/FireFlow@98588a6,
Xilluill/KV-Edit@77129a2, both of its forms, and snap-research/stable-flow@c99ac0e, on equal weights (numbers in
tests/data/feature_share.json).
"""
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.layers import decoder, listed, parse_layers, self_attention_layers
from ..editing.masks import Anchored, blend
from ..editing.sites import TokenEdit, in_tiles, mask_of_rows
from ..inversion.trajectory import Inversion

NAME = "Feature Share"
# V of Stable Flow's Eq. 2 on Flux; the authors' 28, 53, 54, 56, 25 count its 19 double blocks too
VITAL = "d0-1, d17-18, s6, s9, s34-35, s37"


def all_layers(network) -> frozenset:
    return frozenset(p.address for p in self_attention_layers(network))


def last_section(network) -> frozenset:
    """The last kind of block, on Flux all single blocks."""
    layers = self_attention_layers(network)
    return frozenset(p.address for p in layers if p.section == layers[-1].section)


def vital(network) -> frozenset:
    """Stable Flow's blocks. ValueError on a network that lacks some of them."""
    try:
        return parse_layers(VITAL, network)
    except ValueError:
        raise ValueError(f"Stable Flow's layers were found on Flux ({VITAL}), this MODEL has {listed(network)}: name "
                         "your own in layers, or choose another preset.") from None


@dataclass(frozen=True)
class Preset:
    """How a paper shares.

    features: as `parse_features` takes them.
    layers: layers(network) gives their addresses.
    start, end: percents of the schedule.
    everything: whether words' tokens share too.
    lower: whether the source is read a level behind.
    """
    features: str
    layers: Callable
    start: float
    end: float
    everything: bool
    lower: bool


PRESETS = {
    "RF-Edit": Preset("v", lambda network: decoder(network, 0), 0.0, 0.19, True, True),
    "FireFlow": Preset("v", last_section, 0.01, 0.12, True, False),
    "Stable Flow": Preset("k, v", vital, 0.0, 1.0, False, False),
    "KV-Edit": Preset("k, v", all_layers, 0.0, 1.0, False, True)}


def parse_features(text: str) -> dict[str, bool]:
    """{"q", "k" or "v": whether the source's is added, not put in its place} of a list like "+q, v"."""
    items = [item.strip().lower() for item in re.split(r"[,\s]+", text.strip())]
    found = {item.lstrip("+"): item.startswith("+") for item in items}
    if len(found) < len(items) or not all(re.fullmatch(r"\+?[qkv]", item) for item in items):
        raise ValueError(f"features is {text!r}, but can name each of q, k and v once: write 'v', 'k, v', or '+q, v', "
                         "where + adds the source's to the target's.")
    return found


@dataclass(frozen=True, eq=False)
class SharedFeatures(TokenEdit):
    """Tokens hold what the source's do.

    layers: addresses of self-attention.
    start, end: percents of the schedule.
    features: `parse_features`'s.
    everything: whether words' tokens share too, where source and target have as many.
    mask: [masks, h, w] at the latent's size, 1 where the picture's tokens keep their own; None: nowhere.
    """
    inversion: Inversion
    layers: frozenset
    start: float
    end: float
    features: Mapping[str, bool]
    everything: bool = False
    lower: bool = False
    mask: Tensor | None = None
    roles: tuple = ("target",)
    name = NAME

    @property
    def follows(self):
        return not self.lower and not any(self.features.values())

    def begin(self, run):
        if self.mask is not None:
            require_rows(run, len(self.mask), NAME)
        run.warn_if_idle(NAME, lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return site.kind == "tokens" and site.address in self.layers and self.reads(run, sigma)

    def keeps(self, run, site, sigma):
        return self._names() if self.acts(run, site, sigma) else ()

    def _names(self):
        return *self.features, *(f"{name}_beside" for name in self.features if self.everything)

    def held(self, rows, site, own, source):
        if self.mask is not None and in_tiles(self, rows, site, own["q"]):
            return own
        made = dict(own)
        for name in self._names():
            mine, theirs = own[name], source[name]
            if mine.shape != theirs.shape:
                rows.call.run.warn_once(self, "%s: the source has %d tokens beside the picture's and the target %d, so "
                                              "these keep the target's features: make both prompts as long, with as "
                                              "many reference latents, to share them too.", NAME, theirs.shape[1],
                                        mine.shape[1])
                continue
            made[name] = mine + theirs if self.features[name[0]] else theirs
            if self.mask is not None and name in self.features:
                made[name] = torch.where(mask_of_rows(self.mask, rows, site, mine) > 0, mine, made[name])  # Eq. 8
        return made


@dataclass(frozen=True, eq=False)
class KeptBackground(Anchored):
    """Holds the picture outside a mask.

    inside: [masks, h, w] at the latent's size, 1 where the edit may write.
    """
    inversion: Inversion
    inside: Tensor
    lower: bool = False
    start, name = 0.0, NAME

    def mask(self, run, x, sigma) -> Tensor:
        return self.inside

    def before(self, run, x, sigma):
        level = run.lower(self.inversion, sigma) if self.lower else sigma
        return blend(x, run.shown(self.inversion, level), self.inside)
