"""ReFlex: Text-Guided Editing of Real Images in Rectified Flow via Mid-Step Feature Extraction and Attention
Adaptation. Kim, Park, Song, Kwak, Rhee, ICCV 2025. arXiv:2507.01496

The source is read at one level in the middle of its inversion, where what it shows is clearest, however noisy the
target still is. While the target is sampled, in the first steps

    F* <- F                                   what the last branch of a block adds to the picture's tokens
    A*_II <- A_II, of whose largest entries K only the sum stays: inside K it is shared out as A*_II has it
    A*_IT <- M A_IT of words that the source has too, and s A*_IT of new words

with A_II and A_IT what the picture's rows of the softmax give to the picture and to the words, stars the target's, M
the alignment of both prompts and s a scale. K is what is larger than the k-th largest of a row, so k - 1 entries. In
the very first step A*_II <- A_II whole. Without a source prompt words keep A*_IT, scaled where A*_II is adapted, and
three steps have A_II whole.
Attention is linear in its values V*, so with V = [M (r V*_T); V*_I] and r = 1 where a word has a partner

    softmax(q k^T) V + softmax(q* k*^T) [s (1 - r) V*_T; 0] + (the sum of A_II over K · A*_II/(sum over K) - A_II) V*_I

where the last term counts inside K alone and is the only one whose maps are made, some rows at a time.

Differs from the paper: written from the authors' code, which has the constants. They put new noise on the picture for 7
of 28 steps before they invert it, under an empty prompt and at guidance 0, and read it under the source's; any
INVERSION serves here, read under its own prompt. Their blending of latents, where the words that change are looked up,
is Latent Blend's. Theirs has no null prompt: its rows take F and A_II as the source shows them under it, their words
unscaled. Blocks other than Flux's have no F here, and SD3.5 Medium's second attention keeps its own maps. On U-Nets,
which they do not try, A_II and A_IT are two softmaxes.
Checked against: whole runs of wlaud1001/ReFlex@ed12134 on a small Flux of equal weights, with a source prompt and
without, no blending (numbers in tests/data/reflex.json).
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.features import BranchEdit
from ..editing.layers import self_attention_layers
from ..editing.sites import AttentionEdit, require_all_rows, source_of
from ..editing.word_maps import moved, over_keys, sampled_tokens, text_columns
from ..host.batch import repeat_to_batch_size
from ..inversion.trajectory import Inversion
from .alignment import Pair

NAME = "Mid-Step Features"
SHARES = 13 / 57, 20 / 57, 45 / 57  # of Flux's blocks: F from the first to the second, A_II from there to the third
WHOLE = {True: 0.02, False: 0.09}   # until when A*_II <- A_II, with a source prompt (step 0 of 28) and without (0 to 2)
CELLS = 2 ** 24                     # of maps that are held at once


def own_layers(network) -> tuple[frozenset, frozenset]:
    """The addresses of F and of A_II: on Flux d13-18 with s0, and s1-25. On other networks the same shares of all."""
    known = [p.address for p in self_attention_layers(network)]
    first, second, third = (round(share * len(known)) for share in SHARES)
    second = max(second, first + 1)
    return frozenset(known[first:second]), frozenset(known[second:max(third, second + 1)] or known[-1:])


@dataclass(frozen=True, eq=False)
class MidStepFeatures(BranchEdit):
    """F* <- F.

    layers: addresses of blocks.
    end: the percent of the schedule until which it acts.
    middle: the percent at whose level the source is read.
    """
    inversion: Inversion
    layers: frozenset
    end: float
    middle: float = 0.5
    roles: tuple = ("target",)
    name = NAME

    def begin(self, run):
        run.warn_if_idle(NAME, lambda sigma: self.acts(run, sigma))

    def acts(self, run, sigma):
        return run.within(sigma, 0.0, self.end)

    def reads(self, run, sigma):
        return self.acts(run, sigma)

    def added(self, rows, site, added):
        return source_of(self, rows, site).feature


@dataclass(frozen=True, eq=False)
class AdaptedAttention(AttentionEdit):
    """A* <- A, adapted.

    pairs: one of source and target a row; none: without a source prompt.
    self_layers: the addresses of A_II; cross_layers: of A_IT.
    self_end, cross_end: the percents of the schedule until which they are the source's.
    top: k.
    scale: s.
    middle: the percent at whose level the source is read.
    """
    inversion: Inversion
    pairs: tuple[Pair, ...]
    self_layers: frozenset
    cross_layers: frozenset
    self_end: float
    cross_end: float
    top: int
    scale: float
    middle: float = 0.5
    roles: tuple = ("target",)
    name = NAME

    @dataclass
    class State:
        """Of all pairs: M r [pairs, source, target], and s (1 - r) [pairs, target, 1]."""
        mapped: Tensor | None = None
        new: Tensor | None = None

    def begin(self, run):
        texts = sampled_tokens(run) if self.pairs else []
        if self.pairs and self._targets not in texts:
            raise ValueError(f"{NAME} edits towards {', '.join(repr(t.text) for t in self._targets)}, the positive "
                             "being sampled is another prompt: connect Prompt Edit's target CONDITIONING to the "
                             "sampler.")
        require_rows(run, len(self.pairs) or 1, "Prompt Edit", "target prompts")
        run.warn_if_idle(NAME, lambda sigma: self.reads(run, sigma))

    @property
    def _targets(self):
        return tuple(pair.target for pair in self.pairs)

    def reads(self, run, sigma):
        return run.within(sigma, 0.0, max(self.self_end, self.cross_end if self.pairs else 0.0))

    def acts(self, run, site, sigma):
        return self._picture(run, site, sigma) or self._words(run, site, sigma)

    def keeps(self, run, site, sigma):
        return "qk" if self.acts(run, site, sigma) else ""

    def _picture(self, run, site, sigma) -> bool:
        """Whether a site's A_II is the source's."""
        return (site.kind == ("cross" if site.joint else "self") and site.address in self.self_layers
                and run.within(sigma, 0.0, self.self_end))

    def _words(self, run, site, sigma) -> bool:
        """Whether a site's A_IT is."""
        return (bool(self.pairs) and site.kind == "cross" and site.address in self.cross_layers
                and run.within(sigma, 0.0, self.cross_end))

    def attend(self, rows, site, q, k, v, source, attention):
        run, sigma = rows.call.run, rows.call.sigma
        picture, target = self._picture(run, site, sigma), rows.entry["palimpsest_prompt"] is None
        words = (target and self._words(run, site, sigma)
                 and rows.entry.get("palimpsest_tokens") == self._targets)
        if not (picture or words):
            return attention(q, k, v)
        network, own, given = rows.call.network, torch.ones_like(v[..., :1]), torch.zeros_like(source.k)
        if words:
            require_all_rows(rows, len(self.pairs), "target prompts")
            mapped, new = (repeat_to_batch_size(x, rows.count) for x in self._coefficients(run, v))
            given = moved(mapped, v, source.k.shape[1], network)  # M (r V*_T)
            own = over_keys(new, network, v.shape[1], fill=1)     # s (1 - r)
        elif site.joint and target and not self.pairs:
            columns = own.new_full((len(v), text_columns(rows.entry), 1), self.scale)
            own = over_keys(columns, network, v.shape[1], fill=1)  # s A*_IT
        rest = 0
        if picture:
            count = source.q.shape[1]
            if v.shape[1] - site.beside < count:
                raise ValueError(f"{NAME} keeps where all {count} cells look, and another editor with a mask shows it "
                                 f"{v.shape[1] - site.beside} of them: leave that mask out, or set self_end to 0.")
            mine = slice(site.beside, site.beside + count)
            given[:, -count:], own[:, site.beside:] = v[:, mine], 0
            if self.top > 1 and not run.within(sigma, 0.0, WHOLE[bool(self.pairs)]):
                rest = torch.cat(list(self._shared_out(site, q, k[:, mine], v[:, mine], source)), 1)
        out = attention(source.q, source.k, given) + rest
        if not own.any():
            return out
        out = out + attention(q, k, own * v)
        if site.patched:  # what another pack adds to attention, as IPAdapter does, is in both terms
            out = out - attention(q, k, torch.zeros_like(v))
        return out

    def _shared_out(self, site, q, k, v, source) -> Iterator[Tensor]:
        """(the sum of A_II over K · A*_II/(sum over K) - A_II) V*_I inside K, [rows, some tokens, channels] each."""
        # in half precision scores may be equal where K ends, or infinite
        q_s, k_s, q, k, v_ = (x.float().unflatten(-1, (site.heads, -1)).transpose(1, 2) for x in (
            source.q, source.k, q, k, v))
        count = k.shape[2]
        for mine, theirs in zip(*(x.split(max(1, CELLS // (k_s.shape[2] * len(q) * site.heads)), 2)
                                  for x in (q, q_s))):
            maps = (theirs @ k_s.transpose(-1, -2) * theirs.shape[-1] ** -0.5).softmax(-1)[..., -count:]
            least = maps.topk(min(self.top, count), -1).values[..., -1:]
            inside = maps > least  # K
            scores = mine @ k.transpose(-1, -2) * mine.shape[-1] ** -0.5
            shares = scores.masked_fill(~inside, -torch.inf).softmax(-1).nan_to_num(0)  # A*_II/(sum over K)
            maps = maps * inside
            rest = (maps.sum(-1, keepdim=True) * shares - maps) @ v_
            yield rest.transpose(1, 2).flatten(2).to(v)

    def _coefficients(self, run, like) -> tuple[Tensor, Tensor]:
        state = run.state(self)
        if state.mapped is None:
            state.mapped = torch.stack([pair.mapper * pair.kept for pair in self.pairs]).to(like)
            state.new = torch.stack([self.scale * (1 - pair.kept[:, None]) for pair in self.pairs]).to(like)
        return state.mapped, state.new
