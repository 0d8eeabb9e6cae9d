"""Diffusion Self-Guidance for Controllable Image Generation. Epstein, Jabri, Poole, Efros, Holynski, NeurIPS 2023.
arXiv:2306.00986

Where a prompt's word k attends, A_k, and the network's features Ψ tell what its object is like:
    centroid = Σ (x, y)·A_k / Σ A_k,   shape = norm(sigmoid(10·(norm(A_k) - 0.5))),   appearance = Σ shape·Ψ / Σ shape,
norm to 0..1. An energy g of these, by which they differ from what is wanted, guides sampling beside classifier-free guidance,
    ε̂ = ε_cfg + v·σ_t·∇_{z_t} g.
In x = z/√ᾱ and σ that is x0 <- x0 - v·σ²·∇_x g. A picture is edited by what its own maps at the same σ say, marked *: the object
k is to have its shape moved and resized, T, which fixes its position and size as well, and the other objects o keep theirs,
    g = ‖shape_k - T(shape*_k)‖₁ + mean_o ‖shape_o - shape*_o‖₁ + w_a·mean_{k,o} ‖appearance - appearance*‖₁,
each term a mean over sites, ‖·‖₁ a mean over places or channels.

T turns about the centroid of shape*_k. Ψ are the queries of the decoder's cross-attentions at the sites whose maps are read, a
linear map of the activations there, where the paper takes the activations themselves. v, w_a and the span of the schedule are
what did best on the miniature, and every step in the span is guided. Written without the authors' code, and with the paper's
abstract alone at hand.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.control import AttentionEdit, source_of
from ..host.tokens import parse_words, require_columns, sampled_tokens
from .slope import of_text, probabilities, slope

NOISE = 1e-3  # shapes and features of equal latents differ by less, between a forward with gradients and one without


def unit(A: Tensor) -> Tensor:
    """A [B,h,w] from 0 to 1 in each row."""
    low, high = A.amin((1, 2), keepdim=True), A.amax((1, 2), keepdim=True)
    return (A - low) / (high - low).clamp(min=1e-8)


def shape(A: Tensor) -> Tensor:
    return unit((10 * (unit(A) - 0.5)).sigmoid())


def centroid(A: Tensor) -> Tensor:
    """[B, 2]: (x, y) as shares of width and height."""
    y, x = ((torch.arange(n, device=A.device) + 0.5) / n for n in A.shape[1:])
    return torch.stack([(A.sum(1) * x).sum(1), (A.sum(2) * y).sum(1)], 1) / A.sum((1, 2))[:, None]


def appearance(S: Tensor, features: Tensor) -> Tensor:
    """[B, C] of a shape and features [B, h·w, C]."""
    weight = S.flatten(1)[..., None]
    return (weight * features).sum(1) / weight.sum(1)


def transformed(S: Tensor, around: Tensor, move, resize: float) -> Tensor:
    """T(S): S [B,h,w] resized about a point [B,2] (x, y) and moved by (dx, dy), all in shares of the picture; 0 comes in at its
    sides."""
    y, x = torch.meshgrid(*((torch.arange(n, device=S.device) + 0.5) / n for n in S.shape[1:]), indexing="ij")
    to = torch.stack([x, y], -1) - around.new_tensor(move) - around[:, None, None]
    return F.grid_sample(S[:, None], 2 * (around[:, None, None] + to / resize) - 1, align_corners=False)[:, 0]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """[B]: the mean of |a - b| beyond NOISE, without which an object that is where it is wanted would be pushed about."""
    return F.relu((a - b).abs() - NOISE).flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class SelfGuidance(AttentionEdit):
    """words: the object's; others: the names of other objects' words; move: (dx, dy) in shares of the picture; resize: s; share:
    of the latent's side, the grid whose maps are read; scale: v; appearance: w_a; start, end: percents of the schedule."""
    inversion: object
    words: str
    others: str = ""
    move: tuple = (0.0, 0.0)
    resize: float = 1.0
    share: float = 0.5
    scale: float = 1000.0
    appearance: float = 0.05
    start: float = 0.0
    end: float = 0.8

    def begin(self, run):
        known = sampled_tokens(run)
        source = self.inversion.conditioning[0][1].get("palimpsest_tokens")
        if not known or source is None:
            raise ValueError(f"Self-Guidance looks for {self.words!r} in both prompts, and the "
                             f"{'source' if source is None else 'sampled'} prompt carries no words: connect Prompt Edit's "
                             "source to the inversion and its target to the sampler.")
        require_columns(source, self.inversion.conditioning[0][0])
        memory = run.memory(self)
        memory["source"] = self._places(source)
        memory["target"] = {id(tokens): self._places(tokens) for tokens in known}
        run.warn_if_idle("Self-Guidance", lambda sigma: self.reads(run, sigma))

    def _places(self, prompts) -> list:
        """For each prompt the token positions of the object and of each other."""
        named = [parse_words(names, prompts) for names in (self.words, self.others)]
        return [[sum((w.positions for w in own), ()), *(w.positions for w in rest)] for own, rest in zip(*named)]

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return False

    def keeps(self, run, site, sigma):
        return "qk" if site.kind == "cross" and site.share == self.share and self.reads(run, sigma) else ""

    def before(self, run, x, sigma):
        if self.reads(run, sigma):
            run.read(x, sigma)
            found = slope(run, x, sigma, lambda site: site.share == self.share, *self._energy(run))[1]
            run.memory(self)["push"] = self.scale * sigma ** 2 / (1 + sigma ** 2) * found
        return x

    def after(self, run, x0, sigma):
        return x0 - run.memory(self).pop("push", 0)

    def _energy(self, run):
        """(look, loss) of g; of several target entries the mean."""
        terms, memory = {}, run.memory(self)

        def look(rows, site, q, k):
            tokens = rows.entry.get("palimpsest_tokens")
            if tokens is None:
                return
            source = source_of(self, rows, site)
            ours = of_text(probabilities(q, k, site.heads).mean(1), rows).unflatten(1, site.grid)
            theirs = probabilities(source.q, source.k, site.heads).mean(1).unflatten(1, site.grid)
            features = (q.float(), source.q.float()) if site.position[0] == "output" else None
            found = self.energy(self._of(ours, memory["target"][id(tokens)]), self._of(theirs, memory["source"]), features)
            terms.setdefault(rows.entry["uuid"], []).append(found)

        return look, lambda: sum(sum(t) / len(t) for t in terms.values()) / len(terms) if terms else None

    @staticmethod
    def _of(maps, places) -> list:
        """The maps [B,h,w] of the object and of each other, of maps [B,h,w,tokens] and the rows' positions."""
        return [torch.stack([A[..., list(places[i % len(places)][n])].sum(-1) for i, A in enumerate(maps)])
                for n in range(len(places[0]))]

    def energy(self, ours: list, theirs: list, features=None) -> Tensor:
        """g [B] at one site, of the maps [B,h,w] of the object and of each other in the target and in the source; features:
        both's Ψ."""
        shapes, known = ([shape(A) for A in maps] for maps in (ours, theirs))
        g = distance(shapes[0], transformed(known[0], centroid(known[0]), self.move, self.resize))
        if len(ours) > 1:
            g = g + sum(map(distance, shapes[1:], known[1:])) / len(ours[1:])
        if features is not None:
            looks, wanted = ([appearance(S, f) for S in of] for of, f in zip((shapes, known), features))
            g = g + self.appearance * sum(map(distance, looks, wanted)) / len(looks)
        return g
