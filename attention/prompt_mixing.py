"""Localizing Object-level Shape Variations with Text-to-Image Diffusion Models. Patashnik, Garibi, Azuri, Averbuch-Elor,
Cohen-Or, ICCV 2023. arXiv:2303.11306

Denoising settles layout first, then shapes, then details. Mix-and-Match therefore samples with the picture's prompt P, but in
the interval [T3, T2] takes the values of cross-attention from a prompt P' with a proxy word: softmax(Q K(P)^T) · V(P').
Two ways keep the rest in place. Shapes: with O the pixels of the objects to preserve, found by their words' cross-attention,
self-attention maps become

    S*_t <- M ⊙ S_t + (1 - M) ⊙ S*_t,    M[i, j] = 1 where i or j is in O.

With o_i the indicator of O and attention linear in its values, no map is made:
    out_i = Attention(Q_s, K_s, V*)_i + (1 - o_i) · [Attention(Q*, K*, (1 - o) ⊙ V*) - Attention(Q_s, K_s, (1 - o) ⊙ V*)]_i.
Background: late in the schedule (35 of 50) everything outside the object is taken from the source's latent; that is Latent Blend.
Differs from the paper: O is cut at a share of the words' largest value, not at a probability of 0.05, and may be soft; the
background's segments are not clustered from self-attention.
"""
from dataclasses import dataclass

import torch
from comfy.utils import repeat_to_batch_size

from ..host.session import Editor
from ..host.tokens import sampled_tokens
from .control import in_tiles, mask_at
from .layers import SelfAttentionEdit

NAME = "Prompt Mixing"


@dataclass(frozen=True, eq=False)
class MixedValues(Editor):
    """embedding: [B, tokens, channels] of P', row i mod B for row i; from the start to the end percent of the schedule. It acts
    on the entries that carry words; positions that P' has not keep their own values."""
    embedding: torch.Tensor
    start: float
    end: float

    def begin(self, run):
        if not sampled_tokens(run):
            raise ValueError(f"{NAME} mixes values into the picture's prompt, but the positive being sampled is a prompt that "
                             "Prompt Edit did not make: connect Prompt Edit's source CONDITIONING to the sampler.")
        width = run.targets()[0]["model_conds"]["c_crossattn"].cond.shape[-1]
        if self.embedding.shape[-1] != width:
            raise ValueError(f"The mixed prompt is {self.embedding.shape[-1]} wide, the positive being sampled {width}: encode "
                             "both with the MODEL's own CLIP.")
        if run.shape[0] % len(self.embedding):
            raise ValueError(f"{len(self.embedding)} mixed prompts, the latent being sampled has {run.shape[0]} rows: repeat the "
                             f"LATENT to a multiple of {len(self.embedding)} (Repeat Latent Batch).")
        run.warn_if_idle(NAME, lambda sigma: run.within(sigma, self.start, self.end))

    @staticmethod
    def install(model_options, edits, call):
        """model_options with the mixing among the host's own patches of what cross-attention's values are made from."""
        acting = [e for e in edits if call.mode == "write" and call.run.within(call.sigma, e.start, e.end)]
        if not acting:
            return model_options
        options = model_options.copy()
        to = options["transformer_options"] = options["transformer_options"].copy()
        patches = to["patches"] = dict(to.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), *(e.patch(call) for e in acting)]
        return options

    def patch(self, call):
        def mix(q, k, v, options):
            keys = list(zip(options["cond_or_uncond"], options["uuids"]))
            out = list(v.chunk(len(keys)))
            for i, key in enumerate(keys):
                role, entry = call.chunk(*key)
                if role == "target" and entry["palimpsest_tokens"] is not None:
                    out[i] = self.mixed(out[i], len(entry["palimpsest_tokens"][0].ids))
            return q, k, torch.cat(out)
        return mix

    def mixed(self, v, length):
        """v with P' in the place of the prompt; the host may have repeated the prompt's `length` columns."""
        own = v.unflatten(1, (-1, length)).clone()
        other = repeat_to_batch_size(self.embedding, len(v))[:, None, :length].to(v)
        own[:, :, :other.shape[2]] = other
        return own.flatten(1, 2)


@dataclass(frozen=True, eq=False)
class PreservedShapes(SelfAttentionEdit):
    """preserved: O, a mask [B, h, w] at the latent's size."""
    preserved: torch.Tensor = None
    name = NAME

    @property
    def masks(self):
        return [self.preserved]

    def attend(self, rows, site, q, k, v, source, attention):
        if in_tiles(self, rows, site, q):
            return attention(q, k, v)
        free = 1 - repeat_to_batch_size(mask_at(self.preserved, rows, site), rows.count)[..., None].to(v)
        changed = attention(q, k, free * v) - attention(source.q, source.k, free * v)
        return attention(source.q, source.k, v) + free * changed
