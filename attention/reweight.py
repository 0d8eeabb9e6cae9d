"""Attention re-weighting, of Prompt-to-Prompt (Hertz et al., ICLR 2023, arXiv:2208.01626, section 3.2), and its
restraint, after Focus on Your Instruction: Fine-grained and Multi-instruction Image Editing by Attention Modulation.
Guo, Lin, CVPR 2024. arXiv:2312.10113

Re-weighting scales the map of word j by a factor c_j, in any generation: with softmax rows A fixed, out = A (c ⊙ V).
Restraint keeps words W inside a region m: outside it their scores count for nothing, and the softmax is over the
others,

    out_i = m_i · [A (c ⊙ V)]_i + (1 - m_i) · [A ((1 - w) c ⊙ V)]_i / (1 - [A w]_i),    w_j = 1 where j is of W,

which is linear in the values but for one division by what the other tokens have together, so that no map is made. m is
a mask,
or where other words lie: their maps in this run so far, thresholded as P2P's LocalBlend does.
Differs from FoI: it modulates InstructPix2Pix's instruction and samples outside its mask without it; here it is words
of a prompt, and their probability outside is shared out among the rest. Its equations were not at hand: this form is
ours. What another pack's patch adds to attention, as IPAdapter's does, stays as it is.
"""
from dataclasses import dataclass

import torch

from ..editing.masks import latent_mask, require_rows
from ..editing.sites import AttentionEdit, mask_at
from ..editing.word_maps import sampled_tokens
from ..host.batch import repeat_to_batch_size
from ..host.tokens import find_in_some, parse_words

NAME = "Attention Re-weight"


@dataclass(frozen=True, eq=False)
class Reweight(AttentionEdit):
    """factors: {word: c}; restrained: a list of words, as text; region: m [masks, H, W] of any size, or None;
    gathered(run, threshold): in its place [rows, h, w], where other words lie in this run so far, or None; from the
    start to the end percent of the schedule."""
    factors: dict
    restrained: str
    region: torch.Tensor
    gathered: object
    threshold: float
    start: float
    end: float
    rank = 1  # other editors move words to the source's places

    def begin(self, run):
        known = sampled_tokens(run)
        if not known:
            raise ValueError(f"{NAME} finds words in the sampled prompt, but the positive being sampled carries none: "
                             "connect Prompt Edit's target CONDITIONING to the sampler.")
        for prompts in known:
            self.values(prompts)
        if self.region is not None:
            require_rows(run, len(self.region), NAME)
            run.memory(self)["region"] = latent_mask(self.region, run.shape[-2:])
        run.warn_if_idle(NAME, lambda sigma: run.within(sigma, self.start, self.end))

    def values(self, prompts):
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
            run.memory(self)["region"] = region
        return x

    def acts(self, run, site, sigma):
        return site.kind == "cross" and run.within(sigma, self.start, self.end)

    def attend(self, rows, site, q, k, v, source, attention):
        prompts, memory = rows.entry.get("palimpsest_tokens"), rows.call.run.memory(self)
        if prompts is None:
            return attention(q, k, v)
        if id(prompts) not in memory:
            memory[id(prompts)] = tuple(t.to(v) for t in self.values(prompts))
        repeats = v.shape[1] // len(prompts[0].ids)  # the host may repeat the text's columns
        c, w = (repeat_to_batch_size(t, rows.count).repeat(1, repeats)[..., None] for t in memory[id(prompts)])
        full, region = attention(q, k, c * v), memory.get("region")
        if region is None:
            return full
        m = repeat_to_batch_size(mask_at(region, rows, site), rows.count)[..., None].to(v)
        added = attention(q, k, torch.zeros_like(v)) if site.patched else 0  # by another pack, as IPAdapter does
        others, share = (attention(q, k, x) - added for x in ((1 - w) * c * v, w.expand_as(v)))
        return m * (full - added) + (1 - m) * others / (1 - share).clamp(min=1e-3) + added
