"""KV Inversion: KV Embeddings Learning for Text-Conditioned Real Image Action Editing. Huang, Liu, Qin, Chen, PRCV
2023. arXiv:2309.16608

To let a new prompt change an action and keep the picture's contents, the contents are learned where self-attention
keeps them: at each step t offsets of its keys and values, such that sampling returns the picture's trajectory,

    K_t = W_K(h + Δ^K_t),  V_t = W_V(h + Δ^V_t),    Δ_t = arg min ‖z*_{t-1} - z_{t-1}(z̄_t, Δ_t)‖²;

the target is then sampled with its own keys and values plus the learned ones (editing/replay.py).

Differs from the paper: it also learns weights of the offsets, which only scale them. Its offsets are of K and V
themselves; here they stand before the projections, which are square matrices in the host's U-Nets, so that each can
become the other. Its layers, steps and learning rate are not known. Here the layers are few, since all steps' offsets
are kept, in half precision; the optimiser is pivotal_tuning.py's.

Checked against: reconstructed from the paper's abstract and what surveys say of it.
"""
import math
from functools import partial

import torch
from torch import Tensor

from .method import Found, Kept, Method, Setting
from .pivotal_tuning import TOLERANCE, Network, follow
from .trajectory import Theta


def optimise(null, cond, path: list, sigmas: Tensor, shapes: dict, *, cfg: float, **settings) -> tuple[dict, list]:
    """Learn Δ_t along `path`, S+1 latents [B,C,…], for places {name: (2, tokens, width)}; settings are `follow`'s.

    null(x, sigma [B]) returns x0, as does cond(x, sigma [B], {name: Δ [B,2,tokens,width]}), differentiable in Δ.
    Returns {name: Theta [S,B,2,tokens,width]} and for each step (first loss, last loss, updates).
    """
    sizes = [math.prod(shape) for shape in shapes.values()]

    def parts(flat):
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), flat.split(sizes, -1))}

    def predict(x, sigma, pivot):
        unguided = null(x, sigma)
        return lambda flat: (unguided + cfg * (cond(x, sigma, parts(flat)) - unguided), 0)

    learned, history = follow(predict, path, sigmas, path[0].new_zeros(len(path[0]), sum(sizes)), **settings)
    most = torch.finfo(torch.float16).max  # nearly equal levels may learn more
    kept = {name: (part if part.abs().amax() > most else part.to(torch.float16)).contiguous()
            for name, part in parts(learned).items()}
    return {name: Theta(part, "step", "prediction") for name, part in kept.items()}, history


def last_of_each_grid(layers) -> frozenset:
    """The last layer on each grid of the up section."""
    return frozenset({p.resolution: p.address for p in layers if p.section == "u"}.values())


def learn(network: Network, path, sigmas, *, layers, **settings) -> Found:
    addresses = {"content." + ".".join(map(str, address)): address
                 for address in sorted(network.self_attention(layers, last_of_each_grid))}
    widths = network.widths(path[0], sigmas[:1].expand(len(path[0])))

    def cond(x, sigma, deltas):
        return network.with_contents(x, sigma, {addresses[name]: delta for name, delta in deltas.items()})

    theta, losses = optimise(partial(network.x0, "null"), cond, path, sigmas,
                             {name: (2, *widths[address]) for name, address in addresses.items()}, **settings)
    return Found(theta=theta, notes={"losses": losses})


METHOD = Method("KV", "KV Inversion", learn=learn, asks="gradients", unet=True, cfg=7.5, settings={
    "iterations": Setting(10, 1, 500), "tolerance": TOLERANCE, "layers": Setting("")},
    theta={"content.": Kept("step", "prediction", 5)}, guided=True)
