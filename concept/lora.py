"""LoRA: Low-Rank Adaptation of Large Language Models. Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022.
arXiv:2106.09685

A weight W0 [out,in] stays as it is. Beside it a product of two thin matrices learns,

    h = W0 x + ΔW x,    ΔW = (α/r) B A,    B [out,r], A [r,in],

of rank r. A begins Gaussian and B at 0, so that ΔW = 0 (section 4.1). It is a basis of weights for every method that
trains some, as in cloneofsimo's and diffusers' DreamBooth with LoRA. Of small adapters in a U-Net those learn a subject
best whose input comes after the cross-attention (Xiang, Bao, Li, Su, Zhu 2023, arXiv:2303.18181): here a block's layers
from there on.

Differs from the paper: A's deviation is 1/r, as diffusers' training scripts have it (the paper gives none). A
convolution is taken as the matrix [out, in·h·w].
Checked against: peft, a step in diffusers' network; diffusers' and the host's loaders of the file; the paper's
equations.
"""
from dataclasses import dataclass

import torch

from ..editing.concepts import WeightBasis

PARTS = {"attention": ("attn", "attention"), "all": ("",),
         "after cross-attention": ("attn2.to_out", "ff.net")}  # of U-Nets' blocks


@dataclass(frozen=True)
class LoRA(WeightBasis):
    """rank: r.
    alpha: α; 0 takes the rank, so that α/r = 1.
    layers: "attention", "all" matrices and convolutions, or "after cross-attention".
    """
    lr: float
    rank: int = 4
    alpha: float = 0.0
    layers: str = "attention"
    text_encoder: bool = False
    beside = True

    def takes(self, name, weight):
        return weight.ndim >= 2 and any(part in name for part in PARTS[self.layers])

    def takes_text(self, weight):
        return weight.ndim >= 2  # a LoRA file has no product for a bias

    def start(self, weight, generator):
        down = torch.randn(self.rank, weight[0].numel(), generator=generator) / self.rank
        return {"A": down.requires_grad_(), "B": torch.zeros(len(weight), self.rank, requires_grad=True)}

    def delta(self, theta, weight):
        return (self.scale * theta["B"] @ theta["A"]).view(weight.shape)  # section 4.1

    def saved(self, theta, weight):
        """Convolutions have four dimensions in a file."""
        ends = weight.shape[1:] if weight.ndim > 2 else ()
        return {"lora_down.weight": theta["A"].reshape(self.rank, *(ends or (-1,))),
                "lora_up.weight": theta["B"].reshape(len(weight), self.rank, *(1 for _ in ends[1:])),
                "alpha": torch.tensor(self.scale * self.rank)}

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / self.rank
