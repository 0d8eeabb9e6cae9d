"""Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image Editing. Liu, Wang, Cao,
Jia, Huang, CVPR 2024. arXiv:2403.03431

Probing shows that cross-attention maps carry the words' own attributes, so that replacing them brings the old object
back, while self-attention maps carry geometry. Free-Prompt Editing therefore replaces self-attention maps alone,

    out* = softmax(q k^T) · v*

in chosen layers, for the first part of the schedule (0.8); no alignment, and so no source prompt, is needed.
Differs from the paper: q and k come from the reference branch, no map is made. As in the authors' code the maps are
replaced on grids of at most 32² tokens (half of the latent's side) and in the conditional rows alone.
"""
from dataclasses import dataclass

from ..editing.layers import SelfAttentionEdit


@dataclass(frozen=True, eq=False)
class SelfAttentionMaps(SelfAttentionEdit):
    """The source's self-attention maps in place of the target's; `name`: the node's, for messages."""
    name: str = "Free-Prompt Edit"
    follows = True

    def attend(self, rows, site, q, k, v, source, attention):
        return attention(source.q, source.k, v)
