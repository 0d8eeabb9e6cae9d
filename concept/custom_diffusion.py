"""Multi-Concept Customization of Text-to-Image Diffusion. Kumari, Zhang, Zhang, Shechtman, Zhu, CVPR 2023.
arXiv:2212.04488

Of all weights those of cross-attention change most in fine-tuning. So only W_k and W_v learn, which map the text to
keys and values (section 3.2), together with a new word V* before the class noun, and pictures of the class as
regularisation.

Differs from the paper: its class pictures are real ones, found by their captions; here they may be the model's own, as
its ablation and diffusers' script have it. Concepts are joined by loading two files; the constrained merge (Eq. 4 to 6)
is not built. Pictures are not shown at random sizes with words for it ("far away", "zoomed in"). ΔW is learned, from
0. The start token's keys and values learn with the others, where diffusers stops their gradient.
Checked against: diffusers' train_custom_diffusion.py, its loss with the prior and its processors' gradients with the
start token's added; Prompt-to-Prompt with what was learned.
"""
from dataclasses import dataclass

from ..editing.concepts import WholeChange


@dataclass(frozen=True)
class KeysAndValues(WholeChange):
    """W_k and W_v of cross-attention."""
    lr: float

    def takes(self, name, weight):
        return name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
