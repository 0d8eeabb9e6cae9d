"""Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation. Tumanyan, Geyer, Bagon, Dekel, CVPR
2023. arXiv:2211.12572

Spatial features of one decoder layer carry the source's semantic layout, and self-attention its finer structure. While
the target is sampled, at each step

    f*_t^4 <- f_t^4        for the first 80 % of the schedule (tau_f)
    A*_t^l <- A_t^l, l >= 4   for the first 50 % (tau_A)

f^4 is what the decoder's second residual block at a quarter of the latent's side computes before its skip is added: the
output of the block's last convolution, as in the authors' code. A^l are the self-attention maps of the decoder but for
its first layer, put in place by the source's q and k.
Differs from the paper: source features are read at the inversion's own latents with its own prompt, where the authors
invert with an empty one. The null prompt's rows are given what the source shows under the null prompt, as in the
authors' first program. Their diffusers program gives them what it shows under an empty prompt, which is the same where
the negative prompt is empty. Transformers have no decoder: there A* <- A alone.
Checked against: the paper's equations, in an explicit batch of four rows, a whole captioned run. The authors' programs,
MichalGeyer/plug-and-play@4e7f703 and pnp-diffusers, have no licence: read for which rows they give what, not run.
"""
from dataclasses import dataclass

from ..editing.features import FeatureEdit
from ..editing.layers import SelfAttentionEdit, decoder, self_attention_layers
from ..editing.sites import source_of
from ..host.network import residual_branch
from ..inversion.trajectory import Inversion

NAME = "Plug-and-Play Features"


def second_block(unet) -> frozenset:
    """The output block of the decoder's second transformer (u1), or of its only one."""
    numbers = sorted({p.address[1] for p in self_attention_layers(unet) if p.section == "u"})
    return frozenset(numbers[:2][-1:])


def after_first(unet) -> frozenset:
    """Self-attention of the decoder but for its first transformer (u1 and on), unless it has only one. On a transformer
    as `decoder`."""
    mine = [p for p in self_attention_layers(unet) if p.section == "u"]
    if not mine:
        return decoder(unet, 0)
    return frozenset(p.address for p in mine if p.transformer > 0 or mine[-1].transformer == 0)


@dataclass(frozen=True, eq=False)
class ResidualFeatures(FeatureEdit):
    """f* <- f: the source's residual features in the target's place.

    blocks: the numbers of the output blocks.
    end: tau_f, in percent of the schedule.
    roles: the rows that are given them.
    """
    inversion: Inversion
    blocks: frozenset
    end: float
    roles: tuple = ("target",)
    name = NAME
    follows = True

    def begin(self, run):
        run.warn_if_idle(self.name, lambda sigma: self.acts(run, sigma))

    def acts(self, run, sigma):
        return run.within(sigma, 0.0, self.end)

    def reads(self, run, sigma):
        return self.acts(run, sigma)

    def modules(self, network):
        return {("output", number): residual_branch(network, number) for number in self.blocks}

    def shown(self, module, x, out):
        return out.flatten(2).transpose(1, 2)

    def edited(self, rows, site, module, x, out):
        return source_of(self, rows, site).feature.transpose(1, 2).reshape_as(out)


@dataclass(frozen=True, eq=False)
class SelfAttentionMaps(SelfAttentionEdit):
    """A* <- A: the source's self-attention maps in place of the target's."""
    name = NAME
    follows = True

    def attend(self, rows, site, q, k, v, source, attention):
        return attention(source.q, source.k, v)
