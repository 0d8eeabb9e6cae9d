"""Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models. Chefer, Alaluf, Vinker,
Wolf, Cohen-Or, SIGGRAPH 2023. arXiv:2301.13826

What a prompt names is missing from the picture where none of its places attends to the word. A is the mean of the
cross-attention maps at a quarter of the latent's side, over sites and heads. It becomes softmax(100·A) over the text's
tokens without BOS, and each named token s has a map smoothed by a Gaussian, A_s = G(A)_s. Before a step in the first
half of the schedule the latent moves (Algorithm 1),
    L = max_s (1 - max A_s),   z_t <- z_t - α_t·∇_{z_t} L,   α_t = 20·√r, r falling from 1 to ½ over the steps.
At the shares 0, 0.2 and 0.4 of the schedule it moves again and again until every max A_s reaches 0.05, 0.5 and 0.8, at
most 20 times. Every token of a named word counts on its own.

Differs from the paper: the softmax leaves out the last column too, the Gaussian is that of LEDITS++, and a refinement
makes one move more than it needs. All three are as in the authors' code (diffusers'
StableDiffusionAttendAndExcitePipeline). Of other text encoders the softmax leaves out what a template has before the
prompt, and nothing after it. Joint attention is ours, untuned.
Checked against: diffusers 0.42.1, whole runs.
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..editing.attention_loss import at_words, loss_gradient, on_grid, text_maps
from ..editing.latent_move import Mover
from ..editing.masks import smoothed
from ..editing.word_maps import sampled_tokens, text_columns
from ..host.tokens import Tokens, parse_words
from ..inversion.grid import append_dims

THRESHOLDS = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}  # share of the schedule: what every word's max A_s must reach there


def neglect(maps: Tensor, text: list, named: list) -> Tensor:
    """L of one row's A [h, w, tokens], from the positions of its text and of the named words' tokens."""
    attended = (100 * maps[..., text]).softmax(-1)[..., [text.index(n) for n in named]]  # Algorithm 1, line 2
    peaks = smoothed(attended.movedim(-1, 0)).amax((1, 2))  # line 5
    return (1 - peaks).clamp(min=0).amax()  # lines 6 and 8


def text_positions(tokens: Tokens) -> list:
    """All positions but each CLIP chunk's BOS and its last, and what another encoder's template has before the
    prompt."""
    ids, found, start = tokens.ids, [], 0
    for length in tokens.streams:
        own = range(start, start + length)
        found += range(min((p for p in tokens.words[0].positions if p in own), default=start), own.stop)
        start = own.stop
    if found:
        return found
    starts = [p for p, token in enumerate(ids) if token == ids[0]]
    left_out = {*starts, *((p - 1) % len(ids) for p in starts)}
    return [p for p in range(len(ids)) if p not in left_out]


@dataclass(frozen=True, eq=False)
class AttendExcite(Mover):
    """Moves the latent until every named word is attended to.

    words: their names, as a list in a text.
    resolution: of the grid whose maps are read, its side over the latent's.
    layers: the addresses at which they are read, or None for all of the resolution.
    scale: α at the first step.
    end: the percent of the schedule at which it ends.
    thresholds: ((percent, what max A_s must reach there), …).
    refinements: the most moves at one of them.
    """
    words: str
    resolution: float = 0.25
    scale: float = 20.0
    end: float = 0.5
    thresholds: tuple = tuple(THRESHOLDS.items())
    refinements: int = 20
    layers: frozenset | None = None
    name = "Attend-and-Excite"

    @dataclass
    class State(Mover.State):
        """due: {percent: level} of the thresholds that no step has reached.
        named: {id of the Tokens of an entry: for each of its prompts the positions of the words' tokens}.
        """
        due: dict = field(default_factory=dict)
        named: dict = field(default_factory=dict)

    def begin(self, run):
        known, state = sampled_tokens(run), run.state(self)
        if not known:
            raise ValueError("Attend-and-Excite looks for words in the sampled prompt, but it carries no words: "
                             "connect Prompt Edit's target CONDITIONING to the sampler.")
        state.due = dict(self.thresholds)
        state.named = {id(tokens): [sum((w.positions for w in words), ()) for words in parse_words(self.words, tokens)]
                       for tokens in known}
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, 0.0, self.end))

    def hands_on(self, run, sigma):
        return "how far they are, and the thresholds that are reached" if run.within(sigma, 0.0, self.end) else ""

    def move(self, run, x, sigma):
        if not run.within(sigma, 0.0, self.end):
            return x
        steps = run.sigmas[:-1].tolist()
        i = next((i for i, level in enumerate(steps) if level <= sigma * (1 + 1e-4)), len(steps) - 1)
        alpha = self.scale * (1 - 0.5 * i / max(1, len(steps) - 1)) ** 0.5  # α_t
        loss, gradient = self._loss_gradient(run, x, sigma)
        target = 1 - self._threshold(run, sigma)
        refined = loss > target
        for _ in range(self.refinements):  # Algorithm 1, line 10
            if not refined.any():
                break
            x = torch.where(append_dims(refined, x), x - alpha * gradient, x)
            refined = refined & (loss > target)
            loss, gradient = self._loss_gradient(run, x, sigma)
        return x - alpha * gradient  # line 9

    def _threshold(self, run, sigma):
        """What max A_s must reach at this step: the last threshold that no step reached before, else 0."""
        due = run.state(self).due
        return [0.0, *(due.pop(percent) for percent in sorted(due) if run.within(sigma, percent, 1.0))][-1]

    def _loss_gradient(self, run, x, sigma):
        """(L [B], its gradient), of several target entries the largest L."""
        found, named = {}, run.state(self).named

        def record(rows, site, q, k):
            tokens = rows.entry["palimpsest_tokens"]
            if tokens:
                columns = text_columns(rows.entry)
                maps = on_grid(text_maps(q, k, site, rows.call.network, columns).mean(1), site)
                found.setdefault(rows.entry["uuid"], (tokens, []))[1].append(maps)

        def loss():
            entries = []
            for tokens, maps in found.values():
                n = len(tokens)
                entries.append(torch.stack([neglect(A, text_positions(tokens[i % n]), named[id(tokens)][i % n])
                                            for i, A in enumerate(torch.stack(maps).mean(0))]))
            return torch.stack(entries).amax(0) if entries else None

        return loss_gradient(run, x, sigma, at_words(self.resolution, self.layers), record, loss)
