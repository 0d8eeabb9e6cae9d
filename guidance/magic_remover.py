"""MagicRemover: Tuning-free Text-guided Image Inpainting with Diffusion Models. Yang, Zhang, Ma, Liu, Fu, He, 2023.
arXiv:2310.02848

A word names what is to go. The picture's own prompt is sampled from its inversion. From a share of the schedule on
every self-attention looks up the source's keys and values, and the latent is moved so that the word's cross-attention A
falls to its least value,
    L = mean (m ⊙ 15·(A - min A)/max A_0)²,   z_t <- z_t - √(1 - ᾱ_t)·m ⊙ ∇_{z_t} L.
A is the object's map, the geometric mean of its words' maps. Each of these is a mean over sites and heads, summed over
the word's tokens. A_0 is the first that is seen, and m is 1 where the object lies. Before half of the schedule there
are two moves a step (the classifier optimisation), then one. Outside m the source's latents are put back at every step.
In x = z/√ᾱ and σ, with c = √(1 + σ²), a move is x <- x - s·σ·c·m ⊙ ∇_x L, where s is 1. On flow models x is z, and a
move is s·σ·m ⊙ ∇_x L.

A prompt that does not name the object is not moved for, and costs no gradient. Each of several objects of a picture is
moved in its own place, all look up what lies outside all places, and the source is held outside all.

Differs from the paper: its abstract and a published program (mycfhs/Magicremover) were read, its equations were not.
This differs from the program:
- m is known before the run, from a mask or from the source's maps. The program joins the object's map at the end of the
  inversion and the upper fifth of A.
- The words' maps become one. The program lowers each token's.
- The keys that are looked up leave out those in m, without which the object finds itself there again.
- Every move is made before the step. The program puts the last one into its direction.
- The gradient is taken without the features that are looked up.
- The picture is held by the inversion's own latents, not by null-text optimisation.
- Joint attention of words and picture is ours, untuned: A is over the words alone, and words are looked up as before.
Checked against: reconstructed (from the abstract and that program).
"""
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..editing.attention_loss import at_words, loss_gradient, noise_of, text_maps
from ..editing.checks import require_rows
from ..editing.latent_move import Mover
from ..editing.masks import Anchored, mask_for
from ..editing.sites import AttentionEdit, in_tiles, mask_at
from ..editing.word_maps import sampled_tokens, text_columns
from ..host.batch import repeat_to_batch_size
from ..host.tokens import find_in_some
from ..inversion.trajectory import Inversion

TWICE = 0.5  # the percent of the schedule until which there are two moves a step


def object_map(maps: Tensor, places: list) -> Tensor:
    """A [B, …]: of each row's maps [B, …, tokens] the geometric mean over its words, each a tuple of positions."""
    words = (torch.stack([A[..., list(p)].sum(-1) for p in row]) for A, row in zip(maps, places))
    return torch.stack([w.clamp(min=1e-8).log().mean(0).exp() for w in words])


def activation(A: Tensor, least: Tensor, first: Tensor, m: Tensor) -> Tensor:
    """L [B] of maps A, their least values and the largest of the first, within m [B, …]."""
    return (m * 15 * (A - least) / first).square().flatten(1).mean(1)


def union(places: list) -> Tensor:
    """[masks, h, w] of several places. Row i has mask i mod their number, as it has of each place."""
    count = math.lcm(*map(len, places))
    return torch.stack([repeat_to_batch_size(m, count) for m in places]).amax(0)


@dataclass(frozen=True, eq=False)
class Surroundings(Anchored):
    """Holds the source outside the places of all objects that a MODEL's MagicRemovers remove.

    places: [masks, h, w] at the latent's size, 1 in them.
    start: the percent of the schedule from which it holds.
    """
    inversion: Inversion
    places: Tensor
    start: float

    def mask(self, run, x, sigma):
        return self.places


@dataclass(frozen=True, eq=False)
class MagicRemover(Mover, AttentionEdit):
    """Removes one object. At self-attention the first of a run that reads at a σ acts for all.

    words: the names of the object's, or none.
    place: m [masks, h, w] at the latent's size.
    scale: s.
    resolution: of the grid whose maps are read, its side over the latent's.
    layers: the addresses at which they are read, or None for all of the resolution.
    start, end: percents of the schedule.
    """
    inversion: Inversion
    words: tuple
    place: Tensor
    scale: float = 1.0
    resolution: float = 0.25
    start: float = 0.15
    end: float = 1.0
    layers: frozenset | None = None
    roles, name = ("target", "null"), "MagicRemover"
    rank = -0.5  # inside what passes it values, which are not looked up; outside Style Aligned (-1), which adds keys

    @dataclass
    class State(Mover.State):
        """named: {id of the Tokens of an entry: for each of its prompts the positions of each word}.
        first: {uuid of an entry: the largest value of its A_0, [B, 1]}.
        """
        named: dict = field(default_factory=dict)
        first: dict = field(default_factory=dict)

    def begin(self, run):
        require_rows(run, len(self.place), self.name)
        run.state(self).named = {id(prompts): self.named(prompts) for prompts in sampled_tokens(run)}
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))

    def hands_on(self, run, sigma):
        return "its words' first maps" if self.scale and self.words and run.within(sigma, 0.0, self.end) else ""

    def named(self, prompts) -> list:
        """For each prompt the token positions of each of the words; none where a prompt lacks one."""
        try:
            columns = [find_in_some(name, prompts) for name in self.words]
        except ValueError:
            return []
        return [[word.positions for word in row] for row in zip(*columns)] if all(map(all, columns)) else []

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return site.kind == "self" and self._peers(run, sigma)[:1] == [self]

    def _peers(self, run, sigma):
        return [e for e in run.editors if isinstance(e, MagicRemover) and e.reads(run, sigma)]

    def keeps(self, run, site, sigma):
        return "kv" if self.acts(run, site, sigma) else ""

    def attend(self, rows, site, q, k, v, source, attention):
        if in_tiles(self, rows, site, q):
            return attention(q, source.k, source.v)
        if len(q) != len(source.k):
            raise ValueError(f"{self.name} is given {len(q)} of {rows.count} rows by another editor that has a mask "
                             "for each row, and looks up the source for all: give that editor one mask.")
        run, sigma = rows.call.run, rows.call.sigma
        outside = (mask_at(union([e.place for e in self._peers(run, sigma)]), rows, site) == 0).to(source.v)
        outside[~outside.any(1)] = 1
        outside = repeat_to_batch_size(outside, len(q))[..., None]
        # the softmax is over all keys, so that other packs see all, and those in m count as 0
        share = attention(q, source.k, outside.expand_as(source.v))
        if site.joint or any(isinstance(e, AttentionEdit) and e.rank < self.rank and e.acts(run, site, sigma)
                             for e in run.editors):
            # words count as well, and Style Aligned's own keys
            inside = (attention(q, source.k, torch.ones_like(source.v)) - share).unflatten(-1, (site.heads, -1))
            share = (1 - inside.float().mean(-1, keepdim=True)).expand(inside.shape).flatten(-2).to(share)
        return attention(q, source.k, outside * source.v) / share.clamp(min=1e-4)

    def move(self, run, x, sigma):
        if self.scale and any(run.state(self).named.values()) and self.reads(run, sigma):
            m, amount = mask_for(self.place, x), self.scale * noise_of(run, sigma)
            for _ in range(2 if run.within(sigma, self.start, TWICE) else 1):
                x = x - amount * m * loss_gradient(run, x, sigma, at_words(self.resolution, self.layers),
                                                   *self._activation(run))[1]
        return x

    def _activation(self, run):
        """(record, loss) of L; of several target entries the mean."""
        maps, state = {}, run.state(self)

        def record(rows, site, q, k):
            named = state.named.get(id(rows.entry.get("palimpsest_tokens")))
            if named:
                found = text_maps(q, k, site, rows.call.network, text_columns(rows.entry)).mean(1)
                found = object_map(found, [named[i % len(named)] for i in range(rows.count)])
                key = rows.entry["uuid"], id(rows.entry["palimpsest_tokens"])
                maps.setdefault(key, []).append((found, mask_at(self.place, rows, site)))

        def loss():
            terms = []
            for key, found in maps.items():
                A, (_, m) = sum(A for A, _ in found) / len(found), found[0]
                # of a prompt that is cut in time, that of a part before it
                before = (known for k, known in state.first.items() if k[1] == key[1] and k not in maps)
                first = state.first.setdefault(key, next(before, A.detach().amax(1, keepdim=True)))
                terms.append(activation(A, A.detach().amin(1, keepdim=True), first,
                                        repeat_to_batch_size(m, len(A)).to(A)))
            maps.clear()
            return sum(terms) / len(terms) if terms else None

        return record, loss
