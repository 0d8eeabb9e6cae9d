"""DisenBooth: Identity-Preserving Disentangled Tuning for Subject-Driven Text-to-Image Generation. Chen, Zhang, Wu,
Wang, Duan, Zhou, Zhu, ICLR 2024. arXiv:2305.03374

What each picture shows beside the subject, such as the ground and the pose, needs a place, or the subject's prompt
takes it in. So a picture is learned under its prompt f_s and an embedding of its own, f_i: CLIP's embedding f of the
picture, through an adapter that learns with the weights and hides the subject with a mask M,

    f_i = M ⊙ f + MLP(M ⊙ f),    0 < M < 1,

added to every row of the prompt. The prompt alone needs to show the subject only weakly (weak denoising), and both
embeddings are kept apart (contrastive embedding):

    L = ‖ε - ε_θ(z_t, t, f_s + f_i)‖² + λ_2 ‖ε - ε_θ(z_t, t, f_s)‖² + λ_3 cos(f_s, f_i),    λ_2 = 0.01, λ_3 = 0.001.

New pictures are sampled under f_s alone.

Differs from the paper: what learns may be any change of weights; theirs is a LoRA. The adapter is not kept, so a
picture's own f_i is not mixed into new ones. CLIP reads pictures as it was trained to; the authors' program does not
normalise them.
Checked against: the paper's losses on diffusers' network, and its adapter as PyTorch's own layers; the settings are
those of forchchch/DisenBooth@9956ab6, which has no licence.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.concepts import Objective

WEAK, APART, RATE = 0.01, 0.001, 1e-4  # λ_2, λ_3, and the rate of the adapter


def adapter(theta, f: Tensor) -> Tensor:
    """f_i of embeddings [n,D]."""
    seen = theta["mask"].sigmoid() * f
    hidden = F.linear(seen, theta["0.weight"], theta["0.bias"]).relu()
    return seen + F.linear(hidden, theta["1.weight"], theta["1.bias"])


@dataclass(frozen=True, eq=False)
class Disentangled(Objective):
    """embeddings: f of each picture, [n,D].
    weak: λ_2.
    apart: λ_3.
    lr: of the adapter.
    """
    embeddings: Tensor = field(repr=False)
    weak: float = WEAK
    apart: float = APART
    lr: float = RATE

    @property
    def pictures(self):
        return len(self.embeddings)

    def begin(self, generator):
        width = self.embeddings.shape[1]
        theta = {"mask": torch.zeros(width)}
        for n in "01":  # as PyTorch's layers begin
            for part, shape in (("weight", (width, width)), ("bias", (width,))):
                theta[f"{n}.{part}"] = (2 * torch.rand(shape, generator=generator) - 1) / width ** 0.5
        return theta

    def pictured(self, theta, number, prompt):
        width = self.embeddings.shape[1]
        if prompt.shape[-1] != width:
            raise ValueError(f"DisenBooth adds CLIP's {width} numbers of a picture to a prompt's rows, which have "
                             f"{prompt.shape[-1]} here: load the CLIP vision model with as many, ViT-L/14 for SD1.x "
                             "(768) or ViT-H/14 for SD2.x (1024). SDXL and flow models have none.")
        f = self.embeddings[number].clone().to(theta["mask"])  # of no inference mode, for the gradient
        return prompt + adapter(theta, f).to(prompt)

    def parted(self, pictured, alone, whole, text):
        f_i, f_s = (whole - text).float(), text.float()
        return pictured + self.weak * alone + self.apart * F.cosine_similarity(f_s, f_i, dim=-1)
