"""The alignment of two prompts' tokens in Prompt-to-Prompt. Hertz et al., ICLR 2023. arXiv:2208.01626

M[i, j] is the share of source token i's attention map that goes to target token j. A word swap pairs words by their
place. Where a word of n tokens replaces one of another count, each of its tokens gets 1/n of the source's maps. A
refinement aligns the two sequences globally (Needleman-Wunsch: gap 0, match 1, mismatch -1). Target tokens without a
source token keep their own maps, and their columns of M are zero.

Differs from the paper: a prompt over 75 tokens has several chunks. Then all words are paired, and each BOS, EOS and
padding token passes its whole map on, to its like in the same chunk or else in the last one. Prompts that other
encoders than CLIP's read are aligned stream by stream: all words are paired, and the n-th token of a kind outside them
(padding, of a chat template) passes its whole map on to the n-th of its kind, or else to the last.
Checked against: google/prompt-to-prompt@9c472e4 (Apache-2.0), seq_aligner.py: equal on prompts of one chunk, its habit
included that after the last swapped word positions map to themselves, whatever the counts of tokens.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..host.tokens import Tokens, Word


@dataclass(frozen=True, eq=False)
class Pair:
    """Two prompts and the alignment of their tokens.

    mapper: M [n_source, n_target] float32, 0..1, over all positions.
    kept: r [n_target] float32, 1 where the target token has a source token, 0 where it keeps its own map.
    mode: "replace" (a word swap, whose `kept` is all ones) or "refine".
    """
    source: Tokens
    target: Tokens
    mapper: Tensor
    kept: Tensor
    mode: str


@dataclass(frozen=True)
class PromptEdit:
    """The PROMPT_EDIT value: one pair a row of the target CONDITIONING."""
    pairs: tuple[Pair, ...]


def align(source: Tokens, target: Tokens, mode: str = "auto") -> Pair:
    """Align two prompts. "auto" is "replace" when the counts of words are equal and some word differs, else "refine".

    ValueError: "replace" on prompts of different word counts.
    """
    counts = len(source.words), len(target.words)
    if mode == "auto":
        mode = "replace" if counts[0] == counts[1] and _swapped(source, target) else "refine"
    if mode == "replace" and counts[0] != counts[1]:
        raise ValueError(f"source prompt has {counts[0]} words, target {counts[1]}: word swap needs equal counts; "
                         "choose refinement")
    if source.streams:
        return Pair(source, target, *_by_stream(source, target, mode), mode)
    if mode == "refine":
        return Pair(source, target, *refinement(source, target), mode)
    return Pair(source, target, replacement(source, target), torch.ones(len(target.ids)), mode)


def replacement(source: Tokens, target: Tokens) -> Tensor:
    """M of a word swap."""
    m = torch.zeros(len(source.ids), len(target.ids))
    one_chunk = len(_chunks(source)) == len(_chunks(target)) == 1
    paired = max(_swapped(source, target), default=-1) + 1 if one_chunk else len(target.words)
    i = j = 0
    for a, b in zip(source.words[:paired], target.words[:paired]):
        _swap(m, a, b)
        i, j = a.positions[-1] + 1, b.positions[-1] + 1
    if not one_chunk:
        return _with_frame(m, source, target)
    m[0, 0] = 1
    rest = torch.arange(j, min(len(source.ids) + min(j - i, 0), len(target.ids)))
    m[rest, rest] = 1
    return m


def refinement(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """M and `kept` of a refinement."""
    m, kept = _matched(source, target)
    return _with_frame(m, source, target), kept


def _swap(m, a, b):
    """Writes into M that word b stands for a."""
    if len(a.positions) == len(b.positions):
        m[a.positions, b.positions] = 1
    else:
        m[torch.tensor(a.positions, dtype=torch.long)[:, None], b.positions] = 1 / max(1, len(b.positions))


def _matched(source, target) -> tuple[Tensor, Tensor]:
    """M and `kept` of the words of a refinement."""
    m, kept = torch.zeros(len(source.ids), len(target.ids)), torch.ones(len(target.ids))
    x, y = ([p for word in tokens.words for p in word.positions] for tokens in (source, target))
    partners = needleman_wunsch([source.ids[p] for p in x], [target.ids[p] for p in y])
    for j, partner in zip(y, partners):
        if partner is None:
            kept[j] = 0
        else:
            m[x[partner], j] = 1
    return m, kept


def _by_stream(source, target, mode) -> tuple[Tensor, Tensor]:
    """M and `kept` of prompts that other encoders than CLIP's read."""
    found = []
    for ours, theirs in zip(_streams(source), _streams(target)):
        m, kept = _matched(ours, theirs)
        if mode == "replace":
            m, kept = torch.zeros_like(m), torch.ones_like(kept)
            for a, b in zip(ours.words, theirs.words):
                _swap(m, a, b)
        found.append((_with_like(m, ours, theirs), kept))
    return torch.block_diag(*(m for m, _ in found)), torch.cat([kept for _, kept in found])


def _streams(tokens):
    """The Tokens of each stream alone."""
    start = 0
    for length in tokens.streams:
        end = start + length
        words = tuple(Word(word.text, tuple(p - start for p in word.positions if start <= p < end))
                      for word in tokens.words)
        yield Tokens(tokens.text, tokens.ids[start:end], tokens.weights[start:end], words)
        start = end


def _with_like(m, source, target):
    """M with the places outside the words filled in, by the kinds of their tokens."""
    ours, theirs = _kinds(source), _kinds(target)
    for kind, there in theirs.items():
        here = ours.get(kind) or next(iter(ours.values()), [])
        for n in range(max(len(here), len(there)) if here else 0):
            m[here[min(n, len(here) - 1)], there[min(n, len(there) - 1)]] = 1
    rows = sum(ours.values(), [])
    m[rows] /= m[rows].sum(1, keepdim=True).clamp(min=1)
    return m


def _kinds(tokens) -> dict[int, list[int]]:
    """{id: the positions outside the words that have it}."""
    content, found = {p for word in tokens.words for p in word.positions}, {}
    for p, kind in enumerate(tokens.ids):
        if p not in content:
            found.setdefault(kind, []).append(p)
    return found


def needleman_wunsch(x: list[int], y: list[int]) -> list[int | None]:
    """For each item of y the index of its partner in x, or None. Ties go to the earliest places, as the authors' do."""
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            match = score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], match)
    partners: list[int | None] = [None] * len(y)
    i, j = len(x), len(y)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def _swapped(source, target):
    """Places of the words that differ, in spelling or in their count of tokens."""
    return [k for k, (a, b) in enumerate(zip(source.words, target.words))
            if a.text != b.text or len(a.positions) != len(b.positions)]


def _chunks(tokens):
    """(BOS position, positions of EOS and padding) of each chunk."""
    content = {p for word in tokens.words for p in word.positions}
    chunks = []
    for p in (p for p in range(len(tokens.ids)) if p not in content):
        if tokens.ids[p] == tokens.ids[0]:
            chunks.append((p, []))
        else:
            chunks[-1][1].append(p)
    return chunks


def _with_frame(m, source, target):
    """M with the places of BOS, EOS and padding filled in."""
    ours, theirs = _chunks(source), _chunks(target)
    if len(ours) == len(theirs) == 1:
        (_, (eos, *_)), (_, (target_eos, *padding)) = ours[0], theirs[0]
        m[0, 0] = m[eos, target_eos] = 1
        m[padding, padding] = 1
        return m
    for k in range(max(len(ours), len(theirs))):
        bos, (eos, *padding) = ours[min(k, len(ours) - 1)]
        target_bos, (target_eos, *target_padding) = theirs[min(k, len(theirs) - 1)]
        m[bos, target_bos] = m[eos, target_eos] = 1
        for p in padding:
            m[p, p if p in target_padding else target_eos] = 1
    rows = [p for bos, ends in ours for p in (bos, *ends)]
    m[rows] /= m[rows].sum(1, keepdim=True)
    return m
