"""Attention re-weighting, of Prompt-to-Prompt (Hertz et al., ICLR 2023, arXiv:2208.01626, section 3.2), and its
restraint to a region, after Focus on Your Instruction: Fine-grained and Multi-instruction Image Editing by Attention
Modulation. Guo, Lin, CVPR 2024. arXiv:2312.10113

Re-weighting scales the map of word j by a factor c_j, in any generation. With softmax rows A fixed, out = A (c ⊙ V).
Restraint keeps words W inside a region m. Outside it their scores do not count, and the softmax is over the others:

    out_i = m_i · [A (c ⊙ V)]_i + (1 - m_i) · [A ((1 - w) c ⊙ V)]_i / (1 - [A w]_i),    w_j = 1 where j is of W.

This is linear in the values but for one division by what the other tokens have together, so no map is made. m is a
mask, or where other words lie: their maps in this run so far, cut as P2P's LocalBlend does.
Differs from the paper: FoI modulates the instruction of InstructPix2Pix and samples outside its mask without it. Here
these are words of any prompt, and their probability outside the region is shared out among the other tokens. What
another pack's patch adds to attention, as IPAdapter's does, stays as it is.
Checked against: the paper's equations for re-weighting and a reconstruction for restraint, both on explicit maps. FoI's
own equations were not found: guoqincode/Focus-on-Your-Instruction@ee19873 holds a README and no code.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.masks import latent_mask
from ..editing.run import Run
from ..editing.sites import AttentionEdit, mask_of_rows
from ..editing.word_maps import over_keys, sampled_tokens
from ..host.batch import repeat_to_batch_size
from ..host.tokens import find_in_some, parse_words


@dataclass(frozen=True, eq=False)
class Reweight(AttentionEdit):
    """Factors on words' maps, and words that act inside a region only.

    factors: c, {word: factor}.
    restrained: W, words as text.
    region: m [masks, H, W] of any size, or None.
    gathered: gives m [rows, h, w] in its place, where other words lie in this run so far, by a threshold; None before
        the first step.
    threshold: for `gathered`.
    start, end: percents of the schedule between which it acts.
    """
    factors: dict[str, float]
    restrained: str
    region: Tensor | None
    gathered: Callable[[Run, float], Tensor | None] | None
    threshold: float
    start: float
    end: float
    name = "Attention Re-weight"
    rank = 1  # other editors move words to the source's places

    @dataclass
    class State:
        """region: m [masks, h, w] at the latent's size.
        words: (c, w) of each batch of prompts, by the id of their Tokens."""
        region: Tensor | None = None
        words: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def begin(self, run):
        known = sampled_tokens(run)
        if not known:
            raise ValueError(f"{self.name} finds words in the sampled prompt, but the positive being sampled carries "
                             "none: connect Prompt Edit's target CONDITIONING to the sampler.")
        for prompts in known:
            self.values(prompts)  # raises on a word that they lack
        if self.region is not None:
            require_rows(run, len(self.region), self.name)
            run.state(self).region = latent_mask(self.region, run.shape[-2:])
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, self.end))

    def values(self, prompts) -> tuple[Tensor, Tensor]:
        """(c, w), each [prompts, tokens]."""
        c, w = torch.ones(len(prompts), len(prompts[0].ids)), torch.zeros(len(prompts), len(prompts[0].ids))
        for name, factor in self.factors.items():
            for row, word in zip(c, find_in_some(name, prompts)):
                if word:
                    row[list(word.positions)] = factor
        for row, words in zip(w, parse_words(self.restrained, prompts)):
            for word in words:
                row[list(word.positions)] = 1
        return c, w

    def before(self, run, x, sigma):
        region = self.gathered(run, self.threshold) if self.gathered else None
        if region is not None:
            run.state(self).region = region
        return x

    def acts(self, run, site, sigma):
        return site.kind == "cross" and run.within(sigma, self.start, self.end)

    def attend(self, rows, site, q, k, v, source, attention):
        prompts, state = rows.entry.get("palimpsest_tokens"), rows.call.run.state(self)
        if prompts is None:
            return attention(q, k, v)
        if id(prompts) not in state.words:
            state.words[id(prompts)] = tuple(t.to(v) for t in self.values(prompts))
        c, w = (over_keys(repeat_to_batch_size(t, rows.count)[..., None], rows.call.network, v.shape[1], fill)
                for t, fill in zip(state.words[id(prompts)], (1, 0)))
        full = attention(q, k, c * v)  # A (c ⊙ V)
        if state.region is None:
            return full
        m = mask_of_rows(state.region, rows, site, v)
        added = attention(q, k, torch.zeros_like(v)) if site.patched else 0  # by another pack, as IPAdapter does
        others, share = (attention(q, k, x) - added for x in ((1 - w) * c * v, w.expand_as(v)))  # A w is the share
        return m * (full - added) + (1 - m) * others / (1 - share).clamp(min=1e-3) + added
