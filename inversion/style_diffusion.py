"""StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing. Li, van de Weijer, Hu, Khan, Hou, Wang, Yang, 2023.
arXiv:2303.15649

The picture's error is learned where it changes looks and not layout: at each step t only what the cross-attentions' value
projections read is moved, while their keys go on reading the prompt's embedding c. So with v = W_v(c + δ_t), k = W_k c,

    δ_t = arg min ‖z*_{t-1} - z_{t-1}(z̄_t, c, δ_t)‖² + λ·‖A*_t - A_t‖²,

where A_t are the cross-attention maps and A*_t those along the inversion: attention regularisation keeps each word where it
was.

Differs from the paper: there a mapping network of its own for each t makes the values' embedding out of the picture's CLIP
features; here no CLIP of pictures is at hand and the embedding itself is learned (L-BFGS, null_text.py), as an offset from
the prompt's. A target gets it on top of its own embedding, token by token, for the first τ_v of the steps
(host/learned.py); the authors' readme gives τ_v as 0.5 and the paper gives the target the source's values there. The source
prompt gets it at every step, so it returns the picture. P2Plus, self-attention maps for the null prompt too, is an
editor's. The paper was at hand in summary only: neither λ nor the maps' layers were to be read. λ is 1 here, the maps are
those of the resolution of P2P's blend (a quarter of the latent's side), and their distance is the squared one of two
distributions over the words, as a mean over places.
"""
import torch
from torch import Tensor

from .pivot import follow
from .trajectory import Theta


def distance(aims: list, maps: list) -> Tensor:
    """‖A* - A‖² [B] of the maps [B,places,tokens] of several sites: over the tokens a sum, over places and sites a mean."""
    return torch.stack([(a - b).square().sum(-1).mean(1) for a, b in zip(aims, maps, strict=True)]).mean(0)


def optimise(null, cond, path: list, sigmas: Tensor, start: Tensor, *, cfg: float, regularise: float, **settings
             ) -> tuple[Theta, list]:
    """Learn δ_t along `path`, S+1 latents, from `start` [B,tokens,D]; settings are `follow`'s.

    null(x, sigma [B]) returns x0, cond(x, sigma [B], δ or None) x0 and the maps of its sites, differentiable in δ [B,tokens,D].
    Returns Theta [S,B,tokens,D] and for each step (first loss, last loss, updates).
    """
    def predict(x, sigma, pivot):
        unguided, (_, aims) = null(x, sigma), cond(pivot, sigma, None)

        def at(delta):
            x0, maps = cond(x, sigma, delta)
            return unguided + cfg * (x0 - unguided), regularise * distance(aims, maps)
        return at

    learned, history = follow(predict, path, sigmas, start, **settings)
    return Theta(learned, "step", "prediction"), history
