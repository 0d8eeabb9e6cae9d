"""Prompt-to-Prompt Image Editing with Cross Attention Control. Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or,
ICLR 2023. arXiv:2208.01626

While the target is sampled, its cross-attention maps are replaced by the source's, so that the new words fill the old
layout: word swap and refinement put the source map M_t of aligned tokens in place of the target's, re-weighting scales
a token's map by c; self-attention maps are replaced early on to keep the geometry.

With A the source's and A* the target's softmax rows, M [source, target] the alignment of tokens, r_j = 1 where target
token j has a source token, a_j = 1 while token j's cross schedule lasts, and e_j the weight of token j (the paper's c),
the authors' edited map is  A M · (r a e) + A* · ((1 - r) a e + (1 - a)).  Attention is linear in its values V*, so the
same output is

    softmax(q k^T) · M (r a e ⊙ V*)  +  softmax(q* k*^T) · (((1 - r) a e + 1 - a) ⊙ V*)

and no map is ever made; the second call is skipped where its factor is zero. Self-attention: softmax(q k^T) · V*.
Differs from the paper: the source's q and k come from the reference branch, so the source never drifts; what another
pack's patch adds to attention, as IPAdapter's does, is added once.
"""
from dataclasses import dataclass
from functools import cached_property

import torch

from ..editing.sites import AttentionEdit, require_all_rows
from ..editing.word_maps import sampled_tokens
from ..host.batch import repeat_to_batch_size
from ..host.canvas import log


def coefficients(pair, scheduled, weights):
    """(M scaled by r a e [source, target], the factor of the target's own map [target]) for one pair.

    scheduled: a [target] in {0, 1}; weights: e [target]."""
    r = pair.kept
    return pair.mapper * (r * scheduled * weights), (1 - r) * scheduled * weights + 1 - scheduled


@dataclass(frozen=True, eq=False)
class PromptToPrompt(AttentionEdit):
    """cross: (start, end) in percent of the schedule for every token; ends: an end of its own for each token, one
    tensor [target] a pair; weights: e, one tensor [target] a pair; self_: (start, end); resolutions: the largest
    where cross- and self-attention are replaced."""
    inversion: object
    pairs: tuple
    cross: tuple
    self_: tuple
    ends: tuple
    weights: tuple
    cross_resolution: float = 1.0
    self_resolution: float = 0.5

    def begin(self, run):
        texts = sampled_tokens(run)
        if self._targets not in texts:
            seen = "; ".join(repr(t.text) for tokens in texts
                             for t in tokens) or "a prompt that Prompt Edit did not make"
            raise ValueError(f"Attention Inject edits towards {', '.join(repr(t.text) for t in self._targets)}, the "
                             f"positive being sampled is {seen}: connect Prompt Edit's target CONDITIONING to the "
                             "sampler.")
        if run.shape[0] % len(self.pairs):
            raise ValueError(f"Prompt Edit holds {len(self.pairs)} target prompts, the latent being sampled has "
                             f"{run.shape[0]} rows: repeat the LATENT to a multiple of {len(self.pairs)} (Repeat "
                             "Latent Batch).")
        if not any(pair.source.words for pair in self.pairs):
            log.warning("Attention Inject has an empty source prompt, so no word of %s has one of the picture's to "
                        "take its place: write what the picture shows as Prompt Edit's source.",
                        ", ".join(repr(t.text) for t in self._targets))
        run.warn_if_idle("Attention Inject", lambda sigma: self.reads(run, sigma))

    @property
    def follows(self):
        return all(bool((e == 1).all()) for e in self.weights)

    @property
    def _targets(self):
        return tuple(pair.target for pair in self.pairs)

    def _active(self, run, kind, sigma):
        if kind == "self":
            return run.within(sigma, *self.self_)
        return run.within(sigma, self.cross[0], self._last_end)

    @cached_property
    def _last_end(self):
        return max(float(ends.max()) for ends in self.ends)

    def reads(self, run, sigma):
        return self._active(run, "self", sigma) or self._active(run, "cross", sigma)

    def acts(self, run, site, sigma):
        limit = self.self_resolution if site.kind == "self" else self.cross_resolution
        return site.resolution <= limit and self._active(run, site.kind, sigma)

    def keeps(self, run, site, sigma):
        return "qk" if self.acts(run, site, sigma) else ""

    def attend(self, rows, site, q, k, v, source, attention):
        if site.kind == "self":
            return attention(source.q, source.k, v)
        if rows.entry.get("palimpsest_tokens") != self._targets:
            return attention(q, k, v)
        require_all_rows(rows, len(self.pairs), "target prompts")
        mapped, own = (t if t is None else repeat_to_batch_size(t, rows.count) for t in self._now(rows.call, v))
        tokens = mapped.shape[-1]  # the host may repeat the text's columns: equal values, their probabilities sum
        out = attention(source.q, source.k, mapped @ v[:, :tokens])
        if own is None:
            return out
        rest = attention(q, k, own.repeat(1, v.shape[1] // tokens)[..., None] * v)
        if site.patched:  # what another pack adds to attention, as IPAdapter does, is in both terms
            rest = rest - attention(q, k, torch.zeros_like(v))
        return out + rest

    def _now(self, call, like):
        """This σ's coefficients of all pairs, on the device and in the dtype of `like`; None for an own factor of
        zero."""
        memory = call.run.memory(self)
        if memory.get("sigma") != call.sigma:
            def scheduled(ends):
                now = {end: call.run.within(call.sigma, self.cross[0], end) for end in set(ends.tolist())}
                return torch.tensor([now[end] for end in ends.tolist()]).float()
            both = [coefficients(pair, scheduled(ends), e) for pair, ends,
                    e in zip(self.pairs, self.ends, self.weights)]
            mapped, own = (torch.stack(t) for t in zip(*both))
            memory.update(sigma=call.sigma, now=(mapped.to(like), own.to(like) if own.any() else None))
        return memory["now"]
