"""Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation. Tumanyan, Geyer, Bagon, Dekel, CVPR
2023. arXiv:2211.12572

Spatial features of one decoder layer carry the source's semantic layout, and self-attention its finer structure. While
the target is sampled, at each step

    f*_t^4 <- f_t^4        for the first 80 % of the schedule (tau_f)
    A*_t^l <- A_t^l, l >= 4   for the first 50 % (tau_A)

f^4 is what the decoder's second residual block at a quarter of the latent's side computes before its skip is added (the
output of the block's last convolution), as in the authors' code; A^l are the self-attention maps of the decoder but for
its first layer, put in place by the source's q and k (free_prompt.py).
Differs from the paper: source features are read at the inversion's own latents with its own prompt (the authors invert
with an empty one). As in the authors' first program the null prompt's rows are given what the source shows under the
null prompt; their diffusers program gives them what it shows under an empty one, which is the same where the negative
prompt is empty. Checked against an explicit batch of four rows, a whole captioned run. The authors' programs
(MichalGeyer/plug-and-play@4e7f703 and pnp-diffusers) have no licence: read for which rows they give what, not run.
"""
from dataclasses import dataclass
from functools import partial

import torch

from ..editing.editor import Editor
from ..editing.layers import self_attention_layers
from ..editing.sites import Rows, Site, source_of
from ..host.options import with_hooks


def second_block(unet) -> frozenset:
    """The output block of the decoder's second transformer (u1), or of its only one."""
    numbers = sorted({p.address[1] for p in self_attention_layers(unet) if p.section == "u"})
    return frozenset(numbers[:2][-1:])


def after_first(unet) -> frozenset:
    """Self-attention of the decoder but for its first transformer (u1 and on), unless it has only one."""
    mine = [p for p in self_attention_layers(unet) if p.section == "u"]
    return frozenset(p.address for p in mine if p.transformer > 0 or mine[-1].transformer == 0)


@dataclass(frozen=True, eq=False)
class ResidualFeatures(Editor):
    """The source's residual features in the rows of some `roles`, in some output blocks, until the end percent."""
    inversion: object
    blocks: frozenset
    end: float
    roles: tuple = ("target",)
    follows = True

    def begin(self, run):
        run.warn_if_idle("Plug-and-Play Features", lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, 0.0, self.end)

    def keeps(self, run, site, sigma):
        return "q" if self.reads(run, sigma) else ""

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass the residual branches through `_at`."""
        def register(unet, options):
            for number in frozenset().union(*(e.blocks for e in edits)):
                branch = unet.output_blocks[number][0].out_layers[-1]
                yield branch.register_forward_hook(partial(_at, edits, call, number, options))

        return with_hooks(model_options, "palimpsest.features", register)


def _at(edits, call, number, options, branch, inputs, h):
    """h: (rows, channels, height, width), the residual branch of one output block."""
    grid = tuple(h.shape[-2:])
    site = Site("feature", ("output", number), grid, None, None)
    mine = [e for e in edits if number in e.blocks]
    if call.mode == "read":
        parts = call.parts(options)
        for (index, *_, entry), shown in zip(parts, h.chunk(len(parts))):
            if any(e.reads(call.run, level) for e in call.readers(index, mine) for level in call.levels):
                features = {"q": shown.flatten(2).transpose(1, 2)}  # a token a place, as queries are
                call.run.reference.keep(mine[0].inversion, call, index, site, entry.get("area"), features)
        return h
    acting = [e for e in mine if e.reads(call.run, call.sigma)]
    if not acting:
        return h
    parts = call.parts(options)
    out = list(h.chunk(len(parts)))
    for i, (*_, role, entry) in enumerate(parts):
        for edit in (e for e in acting if role in e.roles):
            source = source_of(edit, Rows(call, entry, len(out[i])), site).q
            out[i] = source.transpose(1, 2).reshape_as(out[i])
    return torch.cat(out)
