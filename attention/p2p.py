"""Prompt-to-Prompt Image Editing with Cross Attention Control. Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or,
ICLR 2023. arXiv:2208.01626

While the target is sampled, its cross-attention maps are replaced by the source's, so that the new words fill the old
layout. Word swap and refinement put the source's maps of aligned tokens in place of the target's. Re-weighting scales a
token's map by c. Self-attention maps are replaced early on to keep the geometry.

A are the source's and A* the target's softmax rows. M [source, target] is the alignment of tokens (alignment.py), and
r_j = 1 where target token j has a source token. a_j = 1 while token j's cross schedule lasts, and e_j is the weight of
token j (the paper's c). The authors' edited map is  A M · (r a e) + A* · ((1 - r) a e + (1 - a)).  Attention is linear
in its values V*, so the same output is

    softmax(q k^T) · M (r a e ⊙ V*)  +  softmax(q* k*^T) · (((1 - r) a e + 1 - a) ⊙ V*)

and no map is made. The second call is skipped where its factor is zero. Self-attention: softmax(q k^T) · V*.
Where attention joins words and picture, the picture's rows have both maps in one softmax. Their part on words is edited
as cross-attention is: the picture's values stay in the second call. What self-attention is there, replaces q and k of
the picture's tokens, and so all its rows and their part on words that are not edited: Shin, Hwang, Kim, Kim, Park, ICCV
2025 (arXiv:2508.07519). Words look up what they did.
Differs from the paper: the source's q and k come from the reference branch, so the source never drifts. What another
pack's patch adds to attention, as IPAdapter's does, is added once.
Checked against: google/prompt-to-prompt@9c472e4 (Apache-2.0): the maps that its controllers make, one after another,
written out in a test.
"""
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.sites import AttentionEdit, require_all_rows
from ..editing.word_maps import moved, over_keys, sampled_tokens
from ..host.batch import repeat_to_batch_size
from ..host.canvas import log
from ..inversion.trajectory import Inversion
from .alignment import Pair


def coefficients(pair: Pair, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """M · (r a e) [source, target] and (1 - r) a e + 1 - a [target] for one pair.

    a: [target] in {0, 1}, whether the token's schedule lasts.
    e: [target], the token's weight.
    """
    r = pair.kept
    return pair.mapper * (r * a * e), (1 - r) * a * e + 1 - a


@dataclass(frozen=True, eq=False)
class PromptToPrompt(AttentionEdit):
    """The source's maps in place of the target's, by an alignment of both prompts.

    pairs: one of source and target a row.
    cross_start: the percent of the schedule from which cross-attention is replaced.
    ends: the percent at which it ends for each token, one tensor [target] a pair.
    weights: e, one tensor [target] a pair.
    self_start, self_end: the percents between which self-attention is replaced.
    cross_resolution, self_resolution: the finest grid's side at which they are replaced, as a share of the latent's.
    """
    inversion: Inversion
    pairs: tuple[Pair, ...]
    cross_start: float
    ends: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    self_start: float
    self_end: float
    cross_resolution: float = 1.0
    self_resolution: float = 0.5
    name = "Attention Inject"

    @dataclass
    class State:
        """The coefficients of all pairs at one σ.

        sigma: that σ.
        mapped: M · (r a e), [pairs, source, target].
        own: (1 - r) a e + 1 - a, [pairs, target], or None where it is zero.
        """
        sigma: float | None = None
        mapped: Tensor | None = None
        own: Tensor | None = None

    def begin(self, run):
        texts = sampled_tokens(run)
        if self._targets not in texts:
            seen = "; ".join(repr(t.text) for tokens in texts
                             for t in tokens) or "a prompt that Prompt Edit did not make"
            raise ValueError(f"{self.name} edits towards {', '.join(repr(t.text) for t in self._targets)}, the "
                             f"positive being sampled is {seen}: connect Prompt Edit's target CONDITIONING to the "
                             "sampler.")
        require_rows(run, len(self.pairs), "Prompt Edit", "target prompts")
        if not any(pair.source.words for pair in self.pairs):
            log.warning("%s has an empty source prompt, so no word of %s has one of the picture's to take its place: "
                        "write what the picture shows as Prompt Edit's source.",
                        self.name, ", ".join(repr(t.text) for t in self._targets))
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))
        after = self._peers(run)[self._peers(run).index(self) + 1:]
        if any(self.cross_start < e._last_end and e.cross_start < self._last_end for e in after):
            log.warning("Two %s nodes edit the same words at once, and there the last of the chain counts: give them "
                        "other times, or set cross_end to 0 on one of them.", self.name)

    def _peers(self, run):
        return [e for e in run.editors if isinstance(e, PromptToPrompt) and e._targets == self._targets]

    @property
    def follows(self):
        return all(bool((e == 1).all()) for e in self.weights)

    @property
    def _targets(self):
        return tuple(pair.target for pair in self.pairs)

    def _active(self, run, kind, sigma):
        if kind == "self":
            return run.within(sigma, self.self_start, self.self_end)
        return run.within(sigma, self.cross_start, self._last_end)

    @cached_property
    def _last_end(self):
        return max(float(ends.max()) for ends in self.ends)

    def reads(self, run, sigma):
        return self._active(run, "self", sigma) or self._active(run, "cross", sigma)

    def acts(self, run, site, sigma):
        if site.kind == "self":
            return self._would(run, site, sigma)
        # one inside another would move words that were moved
        return [e for e in self._peers(run) if e._would(run, site, sigma)][-1:] == [self]

    def _would(self, run, site, sigma):
        limit = self.self_resolution if site.kind == "self" else self.cross_resolution
        return site.resolution <= limit and self._active(run, site.kind, sigma)

    def keeps(self, run, site, sigma):
        return "qk" if self.acts(run, site, sigma) else ""

    def attend(self, rows, site, q, k, v, source, attention):
        if site.kind == "self":
            return attention(source.q, source.k, v)  # softmax(q k^T) · V*
        if rows.entry.get("palimpsest_tokens") != self._targets:
            return attention(q, k, v)
        require_all_rows(rows, len(self.pairs), "target prompts")
        now = self._coefficients(rows.call, v)
        mapped = repeat_to_batch_size(now.mapped, rows.count)
        # softmax(q k^T) · M (r a e ⊙ V*)
        out = attention(source.q, source.k, moved(mapped, v, source.k.shape[1], rows.call.network))
        if now.own is None and not site.joint:
            return out
        own = torch.zeros_like(mapped[:, 0]) if now.own is None else repeat_to_batch_size(now.own, rows.count)
        own = over_keys(own[..., None], rows.call.network, v.shape[1], fill=1)  # pictures' tokens keep theirs
        rest = attention(q, k, own * v)  # softmax(q* k*^T) · (((1 - r) a e + 1 - a) ⊙ V*)
        if site.patched:  # what another pack adds to attention, as IPAdapter does, is in both terms
            rest = rest - attention(q, k, torch.zeros_like(v))
        return out + rest

    def _coefficients(self, call, like) -> State:
        """Those of this σ, on the device and in the dtype of `like`."""
        state = call.run.state(self)
        if state.sigma != call.sigma:
            found = [coefficients(*of_pair) for of_pair in zip(self.pairs, self._lasting(call), self.weights)]
            mapped, own = (torch.stack(t) for t in zip(*found))
            state.sigma, state.mapped, state.own = call.sigma, mapped.to(like), own.to(like) if own.any() else None
        return state

    def _lasting(self, call) -> list[Tensor]:
        """a [target] of each pair: 1 where the token's schedule lasts."""
        return [torch.tensor([call.run.within(call.sigma, self.cross_start, end) for end in ends.tolist()]).float()
                for ends in self.ends]
