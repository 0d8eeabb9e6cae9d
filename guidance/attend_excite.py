"""Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models. Chefer, Alaluf, Vinker,
Wolf, Cohen-Or, SIGGRAPH 2023. arXiv:2301.13826

What a prompt names is missing from the picture where none of its places attends to the word. A, the mean of the
cross-attention maps at a quarter of the latent's side over sites and heads, becomes softmax(100·A) over the text's
tokens without BOS, and each named word s a map smoothed by a Gaussian, A_s = G(A)_s. Before a step in the first half of
the schedule the latent moves,
    L = max_s (1 - max A_s),   z_t <- z_t - α_t·∇_{z_t} L,   α_t = 20·√r, r falling from 1 to ½ over the steps (Alg. 1),
and at the shares 0, 0.2 and 0.4 of the schedule again and again until every max A_s reaches 0.05, 0.5 and 0.8 (l. 10),
at most 20 times. As in the authors' code (diffusers' StableDiffusionAttendAndExcitePipeline) the softmax leaves out the
last column too, the Gaussian is that of LEDITS++, and a refinement makes one more move than it needs. Every token of a
named word counts by itself.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.attention_loss import cross_attention_maps, loss_gradient, of_text
from ..editing.latent_move import Mover
from ..editing.masks import smoothed
from ..editing.word_maps import sampled_tokens
from ..host.tokens import parse_words

THRESHOLDS = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}  # share of the schedule: what every word's max A_s is to reach there


def neglect(maps: Tensor, text: list, named: list) -> Tensor:
    """L of one row's A [h, w, tokens], from the positions of its text and of the named words' tokens."""
    attended = (100 * maps[..., text]).softmax(-1)[..., [text.index(n) for n in named]]
    return (1 - smoothed(attended.movedim(-1, 0)).amax((1, 2))).clamp(min=0).amax()


def text_positions(ids) -> list:
    """All positions but each chunk's BOS and its last."""
    starts = [p for p, token in enumerate(ids) if token == ids[0]]
    left_out = {*starts, *((p - 1) % len(ids) for p in starts)}
    return [p for p in range(len(ids)) if p not in left_out]


@dataclass(frozen=True, eq=False)
class AttendExcite(Mover):
    """words: the names of the words, as a list in a text; resolution: of the latent's side, the grid whose maps are read;
    scale: α at the first step; end: the percent at which it ends; thresholds: {percent: level}; refinements: the most
    moves at one of them."""
    words: str
    resolution: float = 0.25
    scale: float = 20.0
    end: float = 0.5
    thresholds: tuple = tuple(THRESHOLDS.items())
    refinements: int = 20

    def begin(self, run):
        known = sampled_tokens(run)
        if not known:
            raise ValueError("Attend-and-Excite looks for words in the sampled prompt, but it carries no words: "
                             "connect Prompt Edit's target CONDITIONING to the sampler.")
        run.memory(self)["due"] = dict(self.thresholds)
        run.memory(self)["named"] = {id(tokens): [sum((w.positions for w in words), ())
                                                  for words in parse_words(self.words, tokens)]
                                     for tokens in known}
        run.warn_if_idle("Attend-and-Excite", lambda sigma: run.within(sigma, 0.0, self.end))

    def move(self, run, x, sigma):
        if not run.within(sigma, 0.0, self.end):
            return x
        steps = run.sigmas[:-1].tolist()
        i = next((i for i, level in enumerate(steps) if level <= sigma * (1 + 1e-4)), len(steps) - 1)
        alpha = self.scale * (1 - 0.5 * i / max(1, len(steps) - 1)) ** 0.5
        loss, gradient = self._slope(run, x, sigma)
        target = 1 - self._due(run, sigma)
        refined = loss > target
        for _ in range(self.refinements):
            if not refined.any():
                break
            x = torch.where(refined.view(-1, *[1] * (x.ndim - 1)), x - alpha * gradient, x)
            refined = refined & (loss > target)
            loss, gradient = self._slope(run, x, sigma)
        return x - alpha * gradient

    def _due(self, run, sigma):
        """The level to be reached at this step, that of the last threshold that no step reached before; else 0."""
        due = run.memory(self)["due"]
        return [0.0, *(due.pop(percent) for percent in sorted(due) if run.within(sigma, percent, 1.0))][-1]

    def _slope(self, run, x, sigma):
        found, named = {}, run.memory(self)["named"]

        def look(rows, site, q, k):
            tokens = rows.entry["palimpsest_tokens"]
            if tokens:
                maps = of_text(cross_attention_maps(q, k, site.heads).mean(1), rows).unflatten(1, site.grid)
                found.setdefault(rows.entry["uuid"], (tokens, []))[1].append(maps)

        def loss():
            entries = []
            for tokens, maps in found.values():
                n = len(tokens)
                entries.append(torch.stack([neglect(A, text_positions(tokens[i % n].ids), named[id(tokens)][i % n])
                                            for i, A in enumerate(torch.stack(maps).mean(0))]))
            return torch.stack(entries).amax(0) if entries else None

        return loss_gradient(run, x, sigma, lambda site: site.resolution == self.resolution, look, loss)
