"""DreamMatcher: Appearance Matching Self-Attention for Semantically-Consistent Text-to-Image Personalization. Nam, Kim,
Lee, Jin, Kim, Chang, CVPR 2024. arXiv:2402.09812

A model that learned a subject draws it anew, in a picture Y. A reference X shows the subject. Y's queries and keys,
which give its structure, stay. Its values, which give its looks, are X's wherever the two pictures match (appearance
matching self-attention):

    AMA = softmax(Q_Y K_Y^T / √d) V_W      V_W = M_c M V_{X→Y} + (1 - M_c M) V_Y

V_{X→Y} = W(V_X; F) gives each place of Y the value of the place of X that is most like it, F = argmax C, where
C = ψ_X·ψ_Y / (|ψ_X| |ψ_Y|) and ψ are the network's own features: what its decoder's second and third layer give, each
in its 256 principal components of both pictures. M is where the subject's word is looked up in Y, scaled to 0..1 and
cut at 0.05. M_c = [|F + W(F'; F)| < λ] keeps the places to which the match of their match, F', comes back: nearer than
λ = 0.4 of the grid's side times the share of the picture that M covers.

ψ are those of the evaluation before, as in the authors' code, since the network makes them after most of the layers
that take them. So nothing is matched in the first one.
Differs from the paper: X is read at the inversion's own latents, under its own prompt. M is the mean of the maps of all
steps before, not of the step alone. Left out is semantic matching guidance, the gradient of what Y's x0 lacks of X's,
which the authors' program has turned off. That program also reads the cut at 0.05 and never makes it: its M is soft, as
here at threshold 0. Where another node gives the prompt an area, X is matched in the same area.
Checked against: KU-CVLAB/DreamMatcher@1c8fe19, its ψ, matches, M_c and warped values on equal features (numbers in
tests/data/dreammatcher.json), and the paper's equations in an explicit batch of four rows, a whole run.
"""
import math
from dataclasses import KW_ONLY, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.features import FeatureEdit
from ..editing.layers import SelfAttentionEdit
from ..editing.sites import in_tiles, mask_of_rows, require_all_rows, source_of
from ..editing.word_maps import WordMaps
from ..host.network import enlarging
from ..inversion.trajectory import Inversion

NAME = "DreamMatcher"
COMPONENTS = 256  # of each layer
CELLS = 2 ** 24  # of C that are held at once


def principal(x: Tensor, most: int) -> Tensor:
    """x [n, channels] less its mean, in `most` principal components, by subspace iteration. With no more channels than
    that they would only be turned, which no angle tells."""
    x = x - x.mean(0)
    if x.shape[1] <= most:
        return x
    basis = torch.randn(x.shape[1], most, generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(3):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    return x @ basis


def descriptors(layers: list) -> Tensor:
    """ψ [2, channels, h, w] of Y and X, of what each layer shows of both [2, channels, h, w], the finest last."""
    size, found = layers[-1].shape[-2:], []
    for x in layers:
        x = F.interpolate(x.float(), size, mode="bilinear")
        found.append(principal(x.movedim(1, -1).flatten(0, 2), COMPONENTS).unflatten(0, (2, *size)))
    return F.normalize(torch.cat(found, -1), dim=-1).movedim(-1, 1)


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """For each of a [n, channels] the index of the most like, by C, of b [m, channels]."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return torch.cat([(part @ b.T).argmax(-1) for part in a.split(max(1, CELLS // len(b)))])


def matches(psi: Tensor, grid: tuple) -> tuple[Tensor, Tensor]:
    """(the token of X for each of Y [tokens], how far from there its match's match is, in tokens [tokens]) on a grid,
    of ψ [2, channels, h, w] of Y and X."""
    ours, theirs = F.interpolate(psi, grid, mode="bilinear").flatten(2).transpose(1, 2)
    there, back = nearest(ours, theirs), nearest(theirs, ours)  # F, F'
    y, x = (torch.arange(len(there), device=psi.device).div(grid[1], rounding_mode="floor"),
            torch.arange(len(there), device=psi.device) % grid[1])
    again = back[there]
    return there, torch.hypot((y[again] - y).float(), (x[again] - x).float())  # |F + W(F'; F)|


def foreground(maps: Tensor, size: tuple, threshold: float) -> Tensor:
    """M [B, h, w] of words' maps [B, words, h', w']: their sum from 0 to 1, cut at the threshold if there is one."""
    total = maps.float().sum(1, keepdim=True)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    scaled = F.interpolate((total - low) / (high - low).clamp(min=torch.finfo(total.dtype).tiny), size)[:, 0]
    return (scaled >= threshold).float() if threshold else scaled


@dataclass(frozen=True, eq=False)
class Descriptors(FeatureEdit):
    """Finds ψ of both pictures, and what of the one is like the other.

    end: percent of the schedule.
    """
    inversion: Inversion
    end: float
    roles: tuple = ("target",)
    name, lends = NAME, True

    @dataclass
    class State:
        """Each by (uuid, area) of a prompt's rows.

        coming: of this evaluation, {address: (what Y shows [rows, C, h, w], what X does)}.
        known: the same of the one before.
        psi: of that, ψ of each row.
        found: {(uuid, area, grid): `matches` of each row}.
        """
        coming: dict = field(default_factory=dict)
        known: dict = field(default_factory=dict)
        psi: dict = field(default_factory=dict)
        found: dict = field(default_factory=dict)

    def modules(self, unet):
        return dict([*enlarging(unet).items()][-2:])

    def reads(self, run, sigma):
        return run.within(sigma, 0.0, self.end)

    def acts(self, run, sigma):
        return self.reads(run, sigma)

    def hands_on(self, run, sigma):
        return "what matches in both pictures" if self.acts(run, sigma) else ""

    def shown(self, module, x, out):
        return out.flatten(2).transpose(1, 2)

    def before(self, run, x, sigma):
        state = run.state(self)
        if state.coming:
            state.known, state.coming, state.psi, state.found = state.coming, {}, {}, {}
        return x

    def edited(self, rows, site, module, x, out):
        theirs = source_of(self, rows, site).feature.transpose(1, 2).unflatten(2, site.grid)
        rows.call.run.state(self).coming.setdefault(_key(rows), {})[site.address] = out, theirs
        return out

    def matched(self, rows, site) -> tuple[Tensor, Tensor] | None:
        """`matches` [rows, tokens] on the site's grid; None before the first evaluation."""
        state, key = rows.call.run.state(self), _key(rows)
        if key not in state.known:  # of a prompt that is cut in time, a part before it
            key = next((known for known in state.known if known[1:] == key[1:]), None)
        if key is None:
            return None
        layers = state.known[key].values()
        for ours, _ in layers:
            require_all_rows(rows, len(ours), "pictures")
        if key not in state.psi:
            state.psi[key] = [descriptors([torch.stack(both) for both in row])
                              for row in zip(*(zip(*pair) for pair in layers))]
        at = *key, site.grid
        if at not in state.found:
            found = zip(*(matches(psi, site.grid) for psi in state.psi[key]))
            state.found[at] = tuple(torch.stack(x) for x in found)
        return state.found[at]


def _key(rows):
    return rows.entry["uuid"], rows.entry.get("area"), id(rows.entry.get("palimpsest_tokens"))


@dataclass(frozen=True, eq=False)
class AppearanceMatching(SelfAttentionEdit):
    """The target's values are the reference's, whose INVERSION this is, where both match.

    words: finds the subject's words.
    descriptors: finds what matches.
    cycle: λ, as a share of the grid's side times the foreground's share of the picture.
    threshold: of the foreground; 0: soft.
    """
    _: KW_ONLY
    words: WordMaps
    descriptors: Descriptors
    cycle: float
    threshold: float
    needs, name, lends = "v", NAME, True
    rank = 1  # it gives values to what others look up

    @dataclass
    class State:
        """foreground: M [rows, h, w] of the steps before."""
        foreground: Tensor | None = None

    def before(self, run, x, sigma):
        maps = self.words.mean(run)
        if maps is not None:
            run.state(self).foreground = foreground(maps, run.shape[-2:], self.threshold)
        return x

    def attend(self, rows, site, q, k, v, source, attention):
        mask, found = rows.call.run.state(self).foreground, self.descriptors.matched(rows, site)
        if mask is None or found is None or in_tiles(self, rows, site, v):
            return attention(q, k, v)
        there, error = (x[..., None] for x in found)
        m = mask_of_rows(mask, rows, site, v)  # M
        near = error < self.cycle * math.prod(site.grid) ** 0.5 * m.mean(1, keepdim=True)  # M_c
        warped = source.v.gather(1, there.expand_as(source.v))  # V_{X→Y}
        return attention(q, k, torch.lerp(v, warped, m * near))  # V_W
