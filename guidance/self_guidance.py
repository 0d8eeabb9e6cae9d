"""Diffusion Self-Guidance for Controllable Image Generation. Epstein, Jabri, Poole, Efros, Holynski, NeurIPS 2023.
arXiv:2306.00986

Where a prompt's word k attends, A_k, and the network's features Ψ tell what its object is like:
    centroid = Σ (x, y)·A_k / Σ A_k,   shape = norm(sigmoid(10·(norm(A_k) - 0.5))),   size = mean(shape),
    appearance = Σ hard·Ψ / Σ hard,   hard = [norm(A_k) > 0.5],
norm to 0..1. An energy g says by how much these differ from what is wanted. It guides sampling beside classifier-free
guidance,
    ε̂ = ε_cfg + v·σ_t·∇_{z_t} g.
In x = z/√ᾱ and σ that is x0 <- x0 - v·σ²·∇_x g. A picture is edited by what its own maps at the same σ say, marked *.
The object k is to have its shape moved and resized, T, or its centroid or its size alone. Other objects o keep their
shapes, and all keep their appearance,
    g = w_s·‖shape_k - T(hard*_k)‖₁ + w_c·‖centroid_k - centroid*_k - move‖₁ + w_z·|size_k - resize²·size*_k|
        + mean_o ‖shape_o - hard*_o‖₁ + w_a·mean_{k,o} ‖appearance - appearance*‖₁,
‖·‖₁ a mean over places, coordinates or channels. What is marked * may be another picture's in the appearance of k. As
in the authors' program the maps of an appearance are constants, all but the appearance is a mean over sites, and the
appearance is of the last site's map. Ψ is what the decoder gives to the network's last layers.

Differs from the paper: T turns about the centroid of shape*_k (the authors': of A_k), and the words of an object make
one map, their sum (the authors': a term a token). v, w_a and the span of the schedule are what did best on the
miniature. The authors leave σ_t out. On flow models x is z and x0 moves as far. In joint attention of words and picture
the maps are over the words alone, at the layers where words are read, and a transformer's Ψ is the tokens that its head
is given, each with mean 0 and variance 1 as most heads make it first: both ours, untuned.
Checked against: authors' code, their Colab for SDXL, written out in a test. Its maps are those of ("output", 1), depths
1 to 3, at a quarter of the latent's side, enlarged to half of it.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.attention_loss import loss_gradient, noise_of, on_grid, text_maps
from ..editing.features import FeatureEdit
from ..editing.sites import AttentionEdit, Rows, Site, source_of
from ..editing.word_maps import sampled_tokens, source_columns, text_columns
from ..host.network import head
from ..host.tokens import parse_words, require_columns
from ..inversion.trajectory import Inversion

NOISE = 1e-3  # features of equal latents differ by less, between a forward with gradients and one without
SMALL = 1e-4  # the authors', in what they divide by


def unit(A: Tensor) -> Tensor:
    """A [B,h,w] from 0 to 1 in each row."""
    low, high = A.amin((1, 2), keepdim=True), A.amax((1, 2), keepdim=True)
    return (A - low) / (high - low + SMALL)


def shape(A: Tensor) -> Tensor:
    """[B,h,w] from 0 to 1, nearly hard."""
    return unit((10 * (unit(A) - 0.5)).sigmoid())


def hard_shape(A: Tensor) -> Tensor:
    """[B,h,w] of 0 and 1, without a gradient."""
    return (unit(A.detach()) > 0.5).to(A)


def centroid(A: Tensor) -> Tensor:
    """[B, 2]: (x, y) as shares of width and height."""
    y, x = ((torch.arange(n, device=A.device) + 0.5) / n for n in A.shape[1:])
    return torch.stack([(A.sum(1) * x).sum(1), (A.sum(2) * y).sum(1)], 1) / A.sum((1, 2))[:, None]


def appearance(A: Tensor, features: Tensor) -> Tensor:
    """[B, C] of a map [B,h,w] and features [B,C,H,W]."""
    weight = F.interpolate(hard_shape(A)[:, None], features.shape[-2:], mode="bilinear", antialias=True)
    return (weight * features).sum((2, 3)) / (weight.sum((2, 3)) + SMALL)


def transformed(S: Tensor, around: Tensor, move, resize: float) -> Tensor:
    """T(S): S [B,h,w] resized about a point [B,2] (x, y) and moved by (dx, dy), all in shares of the picture; 0 comes
    in at its sides."""
    y, x = torch.meshgrid(*((torch.arange(n, device=S.device) + 0.5) / n for n in S.shape[1:]), indexing="ij")
    to = torch.stack([x, y], -1) - around.new_tensor(move) - around[:, None, None]
    return F.grid_sample(S[:, None], 2 * (around[:, None, None] + to / resize) - 1, align_corners=False)[:, 0]


def distance(a: Tensor, b: Tensor, noise: float = 0.0) -> Tensor:
    """[B]: the mean of |a - b| beyond a noise."""
    return F.relu((a - b).abs() - noise).flatten(1).mean(1)


def map_sites(sites: dict, resolution: float) -> frozenset:
    """The addresses of the decoder's {address: resolution} at this resolution. Where more than one transformer there is
    of depth four or more, the authors' three: blocks 1 to 3 of the second one."""
    found = sorted(address for address, at in sites.items() if address[0] == "output" and at == resolution)
    deep = [block for _, block, depth in found if depth == 3]
    if len(deep) > 1:
        return frozenset((section, block, depth) for section, block, depth in found
                         if block == deep[1] and 1 <= depth <= 3)
    return frozenset(found)


@dataclass(frozen=True, eq=False)
class SourceMaps(AttentionEdit):
    """Reads where a picture's words attend.

    sites: the addresses of the cross-attentions whose maps are read.
    start, end: percents of the schedule.
    """
    inversion: Inversion
    sites: frozenset
    start: float
    end: float
    lends: bool = False

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return False

    def keeps(self, run, site, sigma):
        return "qk" if site.kind == "cross" and site.address in self.sites and self.reads(run, sigma) else ""


@dataclass(frozen=True, eq=False)
class SourceFeatures(FeatureEdit):
    """Reads a picture's Ψ.

    start, end: percents of the schedule.
    tokens: the network's `head_tokens`.
    """
    inversion: Inversion
    start: float
    end: float
    lends: bool = False
    tokens: tuple | None = None

    def modules(self, unet):
        return {("out",): head(unet)}

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, sigma):
        return False

    def grid(self, out):
        return self.tokens[0][-2:] if self.tokens else super().grid(out)

    def shown(self, module, x, out):
        return self.psi(x).flatten(2).transpose(1, 2)

    def psi(self, x) -> Tensor:
        """Ψ [B,C,H,W] of what the head is given; the mean over a video's frames."""
        if self.tokens is None:
            return x
        grid, own = self.tokens
        x = F.layer_norm(x[:, own].float(), x.shape[-1:])
        return x.transpose(1, 2).unflatten(2, (-1, *grid[-2:])).mean(2)


@dataclass(frozen=True, eq=False)
class TargetFeatures(SourceFeatures):
    """Shows the target's Ψ to record(rows, site, Ψ)."""
    record: Callable[[Rows, Site, Tensor], None] = field(kw_only=True)

    def acts(self, run, sigma):
        return True

    def edited(self, rows, site, module, x, out):
        self.record(rows, site, self.psi(x))
        return out


@dataclass(frozen=True, eq=False)
class SelfGuidance(SourceMaps):
    """Guides one object of the picture by the energy g.

    words: the object's.
    others: the names of other objects' words.
    move: (dx, dy), in shares of the picture.
    resize: the factor of the object's side.
    scale: v.
    appearance, shape, position, size: w_a, w_s, w_c, w_z.
    features: reads Ψ of the picture.
    donor, donor_features: read another picture, whose object's appearance this one gets.
    donor_words: of that object.
    """
    words: str = ""
    others: str = ""
    move: tuple = (0.0, 0.0)
    resize: float = 1.0
    scale: float = 1000.0
    appearance: float = 0.05
    shape: float = 1.0
    position: float = 0.0
    size: float = 0.0
    features: SourceFeatures | None = None
    donor: SourceMaps | None = None
    donor_features: SourceFeatures | None = None
    donor_words: str = ""
    name = "Self-Guidance"

    @dataclass
    class State:
        """source, donor: for each prompt of the INVERSION the token positions of the object and of each other.
        target: the same of the sampled prompts, {id of the Tokens of an entry: positions}.
        guidance: v·σ²·∇_x g of this evaluation.
        """
        source: list = field(default_factory=list)
        donor: list = field(default_factory=list)
        target: dict = field(default_factory=dict)
        guidance: Tensor | float = 0.0

    def begin(self, run):
        known, state = sampled_tokens(run), run.state(self)
        state.source = self._in_source(self.inversion, self.words, self.others)
        if not known:
            raise ValueError(f"Self-Guidance looks for {self.words!r} in both prompts, and the sampled prompt carries "
                             "no words: connect Prompt Edit's target to the sampler.")
        state.target = {id(tokens): self._positions(tokens, self.words, self.others) for tokens in known}
        if self.donor:
            state.donor = self._in_source(self.donor.inversion, self.donor_words or self.words)
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))

    def _in_source(self, inversion, *names) -> list:
        tokens = inversion.conditioning[0][1].get("palimpsest_tokens")
        if tokens is None:
            raise ValueError(f"Self-Guidance looks for {names[0]!r} in the prompt of an INVERSION, and the source "
                             "prompt carries no words: connect Prompt Edit's source to the inversion.")
        require_columns(tokens, *inversion.conditioning[0])
        return self._positions(tokens, *names)

    @staticmethod
    def _positions(prompts, words, others="") -> list:
        """For each prompt the token positions of the object and of each other."""
        named = [parse_words(names, prompts) for names in (words, others)]
        return [[sum((w.positions for w in own), ()), *(w.positions for w in rest)] for own, rest in zip(*named)]

    def before(self, run, x, sigma):
        if self.reads(run, sigma):
            run.read(x, sigma)
            gradient = self.energy_gradient(run, x, sigma)[1]
            run.state(self).guidance = self.scale * noise_of(run, sigma) ** 2 * gradient  # v·σ²·∇_x g
        return x

    def after(self, run, x0, sigma):
        state = run.state(self)
        guidance, state.guidance = state.guidance, 0.0
        return x0 - guidance

    def energy_gradient(self, run, x, sigma):
        """(g [B], c²·∂g/∂x); of several target entries the mean."""
        layouts, maps, appearances, state = {}, {}, {}, run.state(self)

        def attended(rows, site, q, k, columns):
            return on_grid(text_maps(q, k, site, rows.call.network, columns).mean(1), site)

        def source_maps(reader, rows, site, positions):
            source = source_of(reader, rows, site)
            columns = source_columns(reader.inversion)
            return self._object_maps(attended(rows, site, source.q, source.k, columns), positions, site)

        def record(rows, site, q, k):
            tokens, uuid = rows.entry.get("palimpsest_tokens"), rows.entry["uuid"]
            if tokens is None:
                return
            mine = attended(rows, site, q, k, text_columns(rows.entry))
            ours = self._object_maps(mine, state.target[id(tokens)], site)
            theirs = source_maps(self, rows, site, state.source)
            layouts.setdefault(uuid, []).append(self.layout_energy(ours, theirs))
            object_ = source_maps(self.donor, rows, site, state.donor)[0] if self.donor else theirs[0]
            maps[uuid] = ours, [object_, *theirs[1:]]

        def record_features(rows, site, psi):
            uuid = rows.entry["uuid"]
            if uuid in maps and self.appearance:
                ours, theirs = maps[uuid]
                own = features_of(self.features, rows, site)
                object_ = features_of(self.donor_features, rows, site) if self.donor_features else own
                known = [object_] + [own] * len(ours[1:])
                appearances[uuid] = self.appearance_energy(ours, theirs, psi.float(), known)

        def energy():
            terms = [sum(found) / len(found) + appearances.get(uuid, 0) for uuid, found in layouts.items()]
            return sum(terms) / len(terms) if terms else None

        readers = [TargetFeatures(self.inversion, self.start, self.end, tokens=self.features.tokens,
                                  record=record_features)] if self.features else []
        return loss_gradient(run, x, sigma, lambda site: site.address in self.sites, record, energy, readers)

    @staticmethod
    def _object_maps(maps, positions, site) -> list:
        """The maps [B,h,w] of the object and of each other, of maps [B,h,w,tokens] and the rows' positions; those of
        less than half the latent's side are enlarged to it."""
        found = [torch.stack([A[..., list(positions[i % len(positions)][n])].sum(-1) for i, A in enumerate(maps)])
                 for n in range(len(positions[0]))]
        if site.resolution >= 0.5:
            return found
        size = [round(n * 0.5 / site.resolution) for n in site.grid[-2:]]
        return [F.interpolate(A[:, None], size, mode="bilinear")[:, 0] for A in found]

    def layout_energy(self, ours: list, theirs: list) -> Tensor:
        """g [B] at one site without appearance.

        The maps [B,h,w] are those of the object and of each other object, in the target and in the source.
        """
        A, known = ours[0], theirs[0]
        g = A.new_zeros(len(A))
        if self.shape:
            wanted = transformed(hard_shape(known), centroid(shape(known)), self.move, self.resize)  # T(hard*_k)
            g = g + self.shape * distance(shape(A), wanted)
        if self.position:
            g = g + self.position * distance(centroid(A), centroid(known) + A.new_tensor(self.move))
        if self.size:
            wanted = self.resize ** 2 * shape(known).mean((1, 2))[:, None]
            g = g + self.size * distance(shape(A).mean((1, 2))[:, None], wanted)
        if len(ours) > 1:
            g = g + sum(distance(shape(A), hard_shape(B)) for A, B in zip(ours[1:], theirs[1:])) / len(ours[1:])
        return g

    def appearance_energy(self, ours: list, theirs: list, features: Tensor, known: list) -> Tensor:
        """w_a times appearance's part of g [B], of those maps, the target's Ψ [B,C,H,W] and that of each of theirs."""
        found = [distance(appearance(A, features), appearance(B, of), NOISE) for A, B, of in zip(ours, theirs, known)]
        return self.appearance * sum(found) / len(found)


def features_of(reader, rows, site) -> Tensor:
    """Ψ [B,C,H,W] of a picture, for the rows of the target."""
    return source_of(reader, rows, site).feature.float().transpose(1, 2).unflatten(2, site.grid)
