"""Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image Editing. Liu, Wang, Cao,
Jia, Huang, CVPR 2024. arXiv:2403.03431

Probing shows what the maps hold. Cross-attention maps carry the words' own attributes, so that replacing them brings
the old object back. Self-attention maps carry geometry. Free-Prompt Editing therefore replaces self-attention maps
alone, in chosen layers, for the first part of the schedule (0.8):

    out* = softmax(q k^T) · v*

No alignment is needed, and so no source prompt.
Differs from the paper: q and k come from the reference branch, and no map is made.
Checked against: the paper's equation, on explicit maps. The authors' code, alibaba/EasyNLP@4d38386 (Apache-2.0), was
read and not run. As there, maps are replaced on grids of at most 32² tokens, half of the latent's side, and in the
conditional rows alone.
"""
from dataclasses import dataclass

from ..editing.layers import SelfAttentionEdit


@dataclass(frozen=True, eq=False)
class SelfAttentionMaps(SelfAttentionEdit):
    """The source's self-attention maps in place of the target's."""
    name = "Free-Prompt Edit"
    follows = True

    def attend(self, rows, site, q, k, v, source, attention):
        return attention(source.q, source.k, v)  # softmax(q k^T) · v*
