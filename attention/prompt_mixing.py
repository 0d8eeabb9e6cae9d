"""Localizing Object-level Shape Variations with Text-to-Image Diffusion Models. Patashnik, Garibi, Azuri,
Averbuch-Elor, Cohen-Or, ICCV 2023. arXiv:2303.11306

Denoising settles layout first, then shapes, then details. Mix-and-Match therefore samples with the picture's prompt P,
but in the interval [T3, T2] takes the values of cross-attention from a prompt P' with a proxy word: softmax(Q K(P)^T) ·
V(P'). Two ways keep the rest in place.
Shapes: O are the pixels of the objects to preserve, B those of the object whose shape varies. Both are found by their
words' cross-attention. Self-attention maps become

    S*_t <- M ⊙ S_t + (1 - M) ⊙ S*_t,    M[i, j] = 1 where i or j is in O and neither is in B.

With o and b the indicators of O and B, and attention linear in its values, no map is made:

    out = S* V + (1 - b) ⊙ [Δ((1 - b) ⊙ V) - (1 - o) ⊙ Δ((1 - o) ⊙ (1 - b) ⊙ V)],    Δ(X) = S X - S* X.

Without B this is S V - (1 - o) ⊙ Δ((1 - o) ⊙ V).
Where attention joins words and picture, V(P') are the words' values in a forward of P' at the same latent, and only the
picture's tokens look them up. Words then count as places outside O and B.
Background: late in the schedule (35 of 50) everything outside the object is taken from the source's latent. That is
Latent Blend.
Differs from the paper: O is cut at a share of the words' largest value, not at a probability of 0.05, and may be soft.
The background's segments are not clustered from self-attention. Joint attention is ours, untuned.
Checked against: the paper's equations, on explicit maps, and orpatashnik/local-prompt-mixing@4bc225d (no licence, read
for its formula alone).
"""
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..editing.checks import require_rows
from ..editing.editor import Editor
from ..editing.layers import SelfAttentionEdit
from ..editing.sites import AttentionEdit, in_tiles, mask_of_rows
from ..editing.word_maps import sampled_tokens, text_columns
from ..editing.word_values import word_values
from ..host.batch import repeat_to_batch_size
from ..host.network import text_runs, with_value_inputs

NAME = "Prompt Mixing"


@dataclass(frozen=True, eq=False)
class MixedValues(Editor):
    """Values of cross-attention from another prompt, in the entries that carry words.

    embedding: [B, tokens, channels] of P', row i mod B for row i. Positions that P' has not keep their own values.
    start, end: T3 and T2, in percent of the schedule.
    """
    embedding: Tensor
    start: float
    end: float
    name = NAME

    def begin(self, run):
        check_mixed(self.embedding, run)
        run.warn_if_idle(NAME, lambda sigma: run.within(sigma, self.start, self.end))

    @staticmethod
    def install(model_options, edits, call):
        """model_options with the mixing among the host's own patches of what cross-attention's values are made from."""
        for edit in edits:
            if not call.reads and call.run.within(call.sigma, edit.start, edit.end):
                model_options = with_value_inputs(model_options, partial(edit.mix, call))
        return model_options

    def mix(self, call, v: Tensor, options) -> Tensor:
        """What the values of a forward are made from, with P' in the target's rows."""
        out = []
        for part, own in call.split(options, v):
            tokens = part.entry["palimpsest_tokens"]
            out.append(own if part.role != "target" or tokens is None else self.mixed(own, len(tokens[0].ids)))
        return torch.cat(out)

    def mixed(self, v: Tensor, length: int) -> Tensor:
        """v with P' in the place of the prompt; the host may have repeated the prompt's `length` columns."""
        own = v.unflatten(1, (-1, length)).clone()
        other = repeat_to_batch_size(self.embedding, len(v))[:, None, :length].to(v)
        own[:, :, :other.shape[2]] = other
        return own.flatten(1, 2)


@dataclass(frozen=True, eq=False)
class MixedWords(AttentionEdit):
    """The same where words are no inputs of each attention, from P' seen with the latent being sampled.

    mix: the CONDITIONING of P', of one entry.
    """
    mix: list
    start: float
    end: float
    name, rank = NAME, 1  # other edits of cross-attention are given the mixed values
    revalues = True

    @dataclass
    class State:
        """values: `word_values` of P' and the latent x."""
        x: Tensor | None = None
        values: dict = field(default_factory=dict)

    @property
    def prompts(self):
        return [self.mix]

    def begin(self, run):
        check_mixed(self.mix[0][0], run)
        run.warn_if_idle(NAME, lambda sigma: self._active(run, sigma))

    def _active(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def conditions(self, run, conds, sigma):
        state = run.state(self)
        if self._active(run, sigma) and state.x is not run.x:
            state.x, state.values = run.x, word_values(run, run.prompts(self)[0], run.x, sigma)
        return conds

    def acts(self, run, site, sigma):
        return site.kind == "cross" and self._active(run, sigma)

    def attend(self, rows, site, q, k, v, source, attention):
        if rows.entry.get("palimpsest_tokens") is None:
            return attention(q, k, v)
        mixed, runs = v.clone(), text_runs(rows.call.network, text_columns(rows.entry), v.shape[1])
        for (key, _, count), other in zip(runs, rows.call.run.state(self).values[site.address]):
            other = repeat_to_batch_size(other, len(v))[:, :count]
            mixed[:, key:key + other.shape[1]] = other
        return attention(q, k, mixed)  # softmax(Q K(P)^T) · V(P')


def check_mixed(embedding: Tensor, run):
    """ValueError where P' [B, tokens, channels] cannot be mixed into the prompt being sampled."""
    if not sampled_tokens(run):
        raise ValueError(f"{NAME} mixes values into the picture's prompt, but the positive being sampled is a prompt "
                         "that Prompt Edit did not make: connect Prompt Edit's source CONDITIONING to the sampler.")
    width = run.targets()[0]["model_conds"]["c_crossattn"].cond.shape[-1]
    if embedding.shape[-1] != width:
        raise ValueError(f"The mixed prompt is {embedding.shape[-1]} wide, the positive being sampled {width}: encode "
                         "both with the MODEL's own CLIP.")
    require_rows(run, len(embedding), NAME, "mixed prompts")


@dataclass(frozen=True, eq=False)
class PreservedShapes(SelfAttentionEdit):
    """The source's self-attention maps where objects lie whose shapes are to stay.

    preserved: O [masks, h, w] at the latent's size.
    varied: B, likewise, or None.
    """
    _: KW_ONLY
    preserved: Tensor
    varied: Tensor | None = None
    name = NAME

    @property
    def masks(self):
        return [m for m in (self.preserved, self.varied) if m is not None]

    def attend(self, rows, site, q, k, v, source, attention):
        if in_tiles(self, rows, site, q):
            return attention(q, k, v)

        def change(x):  # Δ(X)
            return attention(source.q, source.k, x) - attention(q, k, x)

        not_o = 1 - mask_of_rows(self.preserved, rows, site, v)
        if self.varied is None:
            return attention(source.q, source.k, v) - not_o * change(not_o * v)  # S V - (1 - o) ⊙ Δ((1 - o) ⊙ V)
        not_b = 1 - mask_of_rows(self.varied, rows, site, v)
        return attention(q, k, v) + not_b * (change(not_b * v) - not_o * change(not_o * not_b * v))
