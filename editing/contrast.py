"""A loss that draws a new word towards some known words and away from others, in the text encoder's table of tokens."""
import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(vectors: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """[n] of vectors [n,D]: -log of the share that words near [p,D] have in Σ exp(cosine / temperature), over those and
    the words far [m,D]."""
    known = F.normalize(torch.cat([near, far]), dim=-1)
    likeness = F.normalize(vectors, dim=-1) @ known.T / temperature
    return likeness.logsumexp(-1) - likeness[:, :len(near)].logsumexp(-1)
