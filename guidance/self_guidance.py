"""Diffusion Self-Guidance for Controllable Image Generation. Epstein, Jabri, Poole, Efros, Holynski, NeurIPS 2023.
arXiv:2306.00986

Where a prompt's word k attends, A_k, and the network's features Ψ tell what its object is like:
    centroid = Σ (x, y)·A_k / Σ A_k,   shape = norm(sigmoid(10·(norm(A_k) - 0.5))),   size = mean(shape),
    appearance = Σ hard·Ψ / Σ hard,   hard = [norm(A_k) > 0.5],
norm to 0..1. An energy g of these, by which they differ from what is wanted, guides sampling beside classifier-free
guidance,
    ε̂ = ε_cfg + v·σ_t·∇_{z_t} g.
In x = z/√ᾱ and σ that is x0 <- x0 - v·σ²·∇_x g. A picture is edited by what its own maps at the same σ say, marked *:
the object k is to have its shape moved and resized, T, or its centroid or its size alone; other objects o keep their
shapes, and all their looks,
    g = w_s·‖shape_k - T(hard*_k)‖₁ + w_c·‖centroid_k - centroid*_k - move‖₁ + w_z·|size_k - resize²·size*_k|
        + mean_o ‖shape_o - hard*_o‖₁ + w_a·mean_{k,o} ‖appearance - appearance*‖₁,
‖·‖₁ a mean over places, coordinates or channels. What is marked * may be another picture's in the appearance of k. As
in the authors' program the maps of an appearance are constants, all but the appearance is a mean over sites, and the
appearance is of the last site's map; Ψ is what the decoder gives to the network's last layers.

Differs from the paper: T turns about the centroid of shape*_k (the authors': of A_k), and the words of an object make
one map, their sum (the authors': a term a token). v, w_a and the span of the schedule are what did best on the
miniature; the authors leave σ_t out.
Checked against the authors' Colab for SDXL, written out in a test. Its maps are those of ("output", 1), depths 1 to 3,
at a quarter of the latent's side, enlarged to half of it.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.attention_loss import cross_attention_maps, loss_gradient, of_text
from ..editing.editor import Editor
from ..editing.sites import AttentionEdit, Rows, Site, source_of
from ..editing.word_maps import sampled_tokens
from ..host.options import with_hooks
from ..host.tokens import parse_words, require_columns

NOISE = 1e-3  # features of equal latents differ by less, between a forward with gradients and one without
SMALL = 1e-4  # the authors', in what they divide by


def unit(A: Tensor) -> Tensor:
    """A [B,h,w] from 0 to 1 in each row."""
    low, high = A.amin((1, 2), keepdim=True), A.amax((1, 2), keepdim=True)
    return (A - low) / (high - low + SMALL)


def shape(A: Tensor) -> Tensor:
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


def map_sites(sites: dict, share: float) -> frozenset:
    """Of {position: share} the decoder's at this share; where that is more than one transformer of depth four or more,
    the authors'
    three: the second one's blocks 1 to 3."""
    found = sorted(p for p, at in sites.items() if p[0] == "output" and at == share)
    deep = [block for _, block, depth in found if depth == 3]
    return frozenset(p for p in found if p[1] == deep[1] and 1 <= p[2] <= 3) if len(deep) > 1 else frozenset(found)


@dataclass(frozen=True, eq=False)
class Shown(AttentionEdit):
    """Reads where a picture's words attend."""
    inversion: object
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
class Decoded(Editor):
    """Reads a picture's Ψ; or shows the target's to look(rows, site, Ψ)."""
    inversion: object
    start: float = 0.0
    end: float = 1.0
    lends: bool = False
    look: object = None

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def keeps(self, run, site, sigma):
        return "q"

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass what the decoder gives through `_at`."""
        if call.mode == "write" and not any(e.look for e in edits):
            return model_options

        def register(unet, options):
            yield unet.out.register_forward_pre_hook(partial(_at, edits, call, options))

        return with_hooks(model_options, "palimpsest.decoded", register)


def _at(edits, call, options, head, inputs):
    h, = inputs
    site = Site("feature", ("out",), tuple(h.shape[-2:]), 1.0, None)
    parts = call.parts(options)
    for (index, *_, entry), rows in zip(parts, h.chunk(len(parts))):
        if call.mode == "write":
            for look in (e.look for e in edits if e.look):
                look(Rows(call, entry, len(rows)), site, rows)
        elif call.readers(index, edits):
            features = {"q": rows.flatten(2).transpose(1, 2)}  # a token a place, as queries are
            call.run.reference.keep(edits[0].inversion, call, index, site, entry.get("area"), features)


@dataclass(frozen=True, eq=False)
class SelfGuidance(Shown):
    """words: the object's; others: the names of other objects' words; move: (dx, dy) in shares of the picture; resize:
    s; sites: the cross-attentions whose maps are read; scale: v; appearance, shape, position, size: w_a, w_s, w_c, w_z;
    start, end: percents of the schedule. decoded: of the same picture. donor, donor_decoded, donor_words: another
    picture's, whose words' looks the object gets."""
    words: str = ""
    others: str = ""
    move: tuple = (0.0, 0.0)
    resize: float = 1.0
    scale: float = 1000.0
    appearance: float = 0.05
    shape: float = 1.0
    position: float = 0.0
    size: float = 0.0
    decoded: object = None
    donor: object = None
    donor_decoded: object = None
    donor_words: str = ""

    def begin(self, run):
        known = sampled_tokens(run)
        memory = run.memory(self)
        memory["source"] = self._known(self.inversion, self.words, self.others)
        if not known:
            raise ValueError(f"Self-Guidance looks for {self.words!r} in both prompts, and the sampled prompt carries "
                             "no words: connect Prompt Edit's target to the sampler.")
        memory["target"] = {id(tokens): self._places(tokens, self.words, self.others) for tokens in known}
        if self.donor:
            memory["donor"] = self._known(self.donor.inversion, self.donor_words or self.words)
        run.warn_if_idle("Self-Guidance", lambda sigma: self.reads(run, sigma))

    def _known(self, inversion, *names) -> list:
        tokens = inversion.conditioning[0][1].get("palimpsest_tokens")
        if tokens is None:
            raise ValueError(f"Self-Guidance looks for {names[0]!r} in the prompt of an INVERSION, and the source "
                             "prompt carries no words: connect Prompt Edit's source to the inversion.")
        require_columns(tokens, inversion.conditioning[0][0])
        return self._places(tokens, *names)

    @staticmethod
    def _places(prompts, words, others="") -> list:
        """For each prompt the token positions of the object and of each other."""
        named = [parse_words(names, prompts) for names in (words, others)]
        return [[sum((w.positions for w in own), ()), *(w.positions for w in rest)] for own, rest in zip(*named)]

    def before(self, run, x, sigma):
        if self.reads(run, sigma):
            run.read(x, sigma)
            found = self.slope(run, x, sigma)[1]
            run.memory(self)["push"] = self.scale * sigma ** 2 / (1 + sigma ** 2) * found
        return x

    def after(self, run, x0, sigma):
        return x0 - run.memory(self).pop("push", 0)

    def slope(self, run, x, sigma):
        """(g [B], c²·∂g/∂x); of several target entries the mean."""
        terms, last, looks, memory = {}, {}, {}, run.memory(self)

        def maps(edit, rows, site, places):
            source = source_of(edit, rows, site)
            return self._of(cross_attention_maps(source.q, source.k, site.heads).mean(1).unflatten(1, site.grid),
                            places, site)

        def look(rows, site, q, k):
            tokens = rows.entry.get("palimpsest_tokens")
            if tokens is None:
                return
            ours = of_text(cross_attention_maps(q, k, site.heads).mean(1), rows).unflatten(1, site.grid)
            ours, theirs = self._of(ours, memory["target"][id(tokens)], site), maps(self, rows, site, memory["source"])
            terms.setdefault(rows.entry["uuid"], []).append(self.placed(ours, theirs))
            given = maps(self.donor, rows, site, memory["donor"]) if self.donor else theirs[:1]
            last[rows.entry["uuid"]] = ours, [given[0], *theirs[1:]]

        def features(rows, site, h):
            if rows.entry["uuid"] in last and self.appearance:
                def seen(edit):
                    return source_of(edit, rows, site).q.float().transpose(1, 2).unflatten(2, site.grid)
                ours, theirs = last[rows.entry["uuid"]]
                own = seen(self.decoded)
                given = seen(self.donor_decoded) if self.donor_decoded else own
                looks[rows.entry["uuid"]] = self.looked(ours, theirs, h.float(), [given] + [own] * len(ours[1:]))

        def energy():
            return sum(sum(t) / len(t) + looks.get(uuid, 0)
                       for uuid, t in terms.items()) / len(terms) if terms else None

        return loss_gradient(run, x, sigma, lambda site: site.address in self.sites, look, energy,
                     lambda options, call: Decoded.install(options, [Decoded(None, look=features)], call))

    @staticmethod
    def _of(maps, places, site) -> list:
        """The maps [B,h,w] of the object and of each other, of maps [B,h,w,tokens] and the rows' positions; those of
        less than half the latent's side are enlarged to it."""
        found = [torch.stack([A[..., list(places[i % len(places)][n])].sum(-1) for i, A in enumerate(maps)])
                 for n in range(len(places[0]))]
        if site.resolution >= 0.5:
            return found
        size = [round(n * 0.5 / site.resolution) for n in site.grid]
        return [F.interpolate(A[:, None], size, mode="bilinear")[:, 0] for A in found]

    def placed(self, ours: list, theirs: list) -> Tensor:
        """g [B] without appearance at one site, of the maps [B,h,w] of the object and of each other in the target and
        the source."""
        A, known = ours[0], theirs[0]
        g = A.new_zeros(len(A))
        if self.shape:
            g = g + self.shape * distance(shape(A),
                                          transformed(hard_shape(known), centroid(shape(known)), self.move,
                                                      self.resize))
        if self.position:
            g = g + self.position * distance(centroid(A), centroid(known) + A.new_tensor(self.move))
        if self.size:
            g = g + self.size * distance(shape(A).mean((1, 2))[:, None],
                                         self.resize ** 2 * shape(known).mean((1, 2))[:, None])
        if len(ours) > 1:
            g = g + sum(distance(shape(A), hard_shape(B)) for A, B in zip(ours[1:], theirs[1:])) / len(ours[1:])
        return g

    def looked(self, ours: list, theirs: list, features: Tensor, known: list) -> Tensor:
        """w_a times appearance's part of g [B], of those maps, the target's Ψ [B,C,H,W] and that of each of theirs."""
        found = [distance(appearance(A, features), appearance(B, of), NOISE) for A, B, of in zip(ours, theirs, known)]
        return self.appearance * sum(found) / len(found)
