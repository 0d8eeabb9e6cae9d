"""StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing. Li, van de Weijer, Hu, Khan, Hou, Wang, Yang,
2023. arXiv:2303.15649

The picture's error is learned where it changes looks and not layout: at each step t only what the cross-attentions'
value projections read is changed, while their keys go on reading the prompt's embedding c. With a scale s_t and a shift
b_t for each token and channel, so that v = W_v(s_t ⊙ c + b_t) and k = W_k c,

    s_t, b_t = arg min ‖z*_{t-1} - z_{t-1}(z̄_t, c, s_t, b_t)‖² + λ·Σ ‖A*_t - A_t‖²,    λ = 1,

both norms mean squares, the sum over the cross-attention maps A_t of P2P's blend (a quarter of the latent's side, down
and up), whose mean is over heads, places and tokens; A*_t are those along the inversion. This attention regularisation
keeps each word where it was. A step takes at most K·e^(-0.1·i) updates, i being its number of 30.

Differs from the paper: there a mapping network for each t makes s_t and b_t out of the picture's CLIP features. Here
both are learned directly, from 1 and 0, by pivotal_tuning.py's L-BFGS with a smaller K. A target's embedding is scaled
and shifted token by token for the first τ_v of the steps (editing/replay.py); the authors' readme gives τ_v as 0.5. The
source prompt's is at every step, so it returns the picture. P2Plus, self-attention maps for the null prompt too, is an
editor's.

Checked against: the paper's equations; sen-mao/StyleDiffusion@07b388a for its settings and losses alone, since it has
no licence.
"""
from functools import partial

import torch
from torch import Tensor

from .method import Found, Kept, Method, Setting
from .pivotal_tuning import TOLERANCE, Network, follow
from .trajectory import Theta

DECAY = 3.0  # 30 steps of e^-0.1


def distance(aims: list, maps: list) -> Tensor:
    """Σ ‖A* - A‖² [B] over several sites of their maps [B,heads,places,tokens], each a mean."""
    return sum(((a - b).square().flatten(1).mean(1) for a, b in zip(aims, maps, strict=True)), torch.zeros(()))


def optimise(null, cond, path: list, sigmas: Tensor, shape: tuple, *, cfg: float, regularise: float, **settings
             ) -> tuple[dict, list]:
    """Learn s_t and b_t along `path`, S+1 latents, for an embedding of shape [B,tokens,D]; settings are `follow`'s.

    null(x, sigma [B]) returns x0, cond(x, sigma [B], scale, shift) x0 and the maps of its sites, differentiable in both
    [B,tokens,D], which may be None. Returns {"value_scale": Theta [S,B,tokens,D], "value": that of the shifts} and for
    each step (first loss, last loss, updates).
    """
    def parts(theta):
        return 1 + theta[..., 0, :, :], theta[..., 1, :, :]

    def predict(x, sigma, pivot):
        unguided, (_, aims) = null(x, sigma), cond(pivot, sigma, None, None)

        def at(theta):
            x0, maps = cond(x, sigma, *parts(theta))
            return unguided + cfg * (x0 - unguided), regularise * distance(aims, maps)
        return at

    start = path[0].new_zeros(shape[0], 2, *shape[1:])
    learned, history = follow(predict, path, sigmas, start, decay=DECAY, **settings)
    scale, shift = (Theta(part.contiguous(), "step", "prediction") for part in parts(learned))
    return {"value_scale": scale, "value": shift}, history


def learn(network: Network, path, sigmas, *, end, **settings) -> Found:
    addresses = network.cross_attention(1 / 4)
    theta, losses = optimise(partial(network.x0, "null"), partial(network.with_values, addresses), path, sigmas,
                             network.embedding("source").shape, **settings)
    until = Theta(torch.tensor([end]), "run", "prediction")
    return Found(theta={**theta, "value_end": until}, notes={"losses": losses})


METHOD = Method("StyleDiffusion", "StyleDiffusion Invert", learn=learn, asks="gradients", unet=True, cfg=7.5, settings={
    "iterations": Setting(30, 1, 500), "tolerance": TOLERANCE, "regularise": Setting(1.0, 0.0, 1000.0),
    "end": Setting(0.5, 0.0, 1.0)},
    theta={"value": Kept("step", "prediction", 4), "value_end": Kept("run", "prediction", 1),
           "value_scale": Kept("step", "prediction", 4, optional=True)}, guided=True)
