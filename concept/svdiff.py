"""SVDiff: Compact Parameter Space for Diffusion Fine-Tuning. Han, Li, Zhang, Milanfar, Metaxas, Yang, ICCV 2023.
arXiv:2303.11305

Every weight is taken as a matrix W = U diag(σ) Vᵀ. Its singular vectors stay, its singular values shift by δ (Eq. 2):

    W_δ = U diag(relu(σ + δ)) Vᵀ.

Few numbers can say so little that it hardly overfits, at a learning rate a thousand times that of fine-tuning.

A file holds δ alone, and another one ΔW = W_δ - W, which every loader knows.

Differs from the authors' program: weights of one dimension, whose numbers it shifts themselves, do not learn.
Cut-Mix-Unmix, for several subjects, is not built.
Checked against: phymhan/SVDiff@4ca843c, its shifted weights and their gradients (numbers in tests/data/svdiff.json);
gradients against finite differences too, and in training against those of whole weights.
"""
from dataclasses import dataclass

import torch

from ..editing.concepts import WeightBasis


@dataclass(frozen=True)
class SpectralShifts(WeightBasis):
    """δ of every matrix and convolution."""
    lr: float

    def takes(self, name, weight):
        return weight.ndim >= 2

    def start(self, weight, generator):
        u, sigma, v = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        return {"U": u, "σ": sigma, "Vᵀ": v, "δ": torch.zeros_like(sigma, requires_grad=True)}

    def delta(self, theta, weight):
        shifted = torch.relu(theta["σ"] + theta["δ"]) - theta["σ"]  # Eq. 2, less W
        return (theta["U"] * shifted @ theta["Vᵀ"]).view(weight.shape)

    def saved(self, theta, weight):
        return {"diff": self.delta(theta, weight)}

    def compact(self, theta):
        return theta["δ"]

    def regrown(self, few, weight):
        theta = self.start(weight, torch.Generator())
        if few.shape != theta["δ"].shape:
            raise ValueError(f"A weight's {few.numel()} shifts do not fit the {theta['δ'].numel()} singular values "
                             "that it has in this MODEL: connect the MODEL that learned them.")
        return {**theta, "δ": few}
