"""Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion Models. Miyake, Iohara, Saito,
Tanaka, 2023. arXiv:2305.16807

Null-text inversion optimises the unconditional embedding until sampling with guidance w, ε_u + w·(ε_c - ε_u), follows
the DDIM trajectory of the source prompt. Where neighbouring steps predict alike, the optimum is near the source
prompt's own embedding: with it as the negative prompt the guidance cancels and the source comes back as at guidance 1,
without optimisation.

`weight` walks on the sphere from the source's embedding (0, the paper) to the null prompt's (1), as ProxEdit (Han et
al. 2024, arXiv:2306.05414) does for edits that the negative prompt holds back.

Checked against: the paper's equations.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .method import UNCOND_POOLED, Found, Kept, Method, Setting
from .trajectory import Theta


def slerp(weight: float, a: Tensor, b: Tensor) -> Tensor:
    """Spherical interpolation of each row of a [B,…] (weight 0) with b (weight 1), every row as one vector."""
    u, v = (t.double().flatten(1) for t in (a, b))
    angle = torch.acos(F.cosine_similarity(u, v).clamp(-1, 1))[:, None]
    flat = angle.sin() < 1e-6
    from_a, from_b = (torch.where(flat, w, torch.sin(w * angle) / torch.sin(angle)) for w in (1 - weight, weight))
    return (from_a * u + from_b * v).view_as(a).to(a.dtype)


def repeated(a: Tensor, b: Tensor) -> tuple:
    """Embeddings [B,tokens,C] of prompts of different length, repeated to one, as the host does: attention to a whole
    number of times the same tokens is the same. Pooled ones [B,P] as they are."""
    length = math.lcm(a.shape[1], b.shape[1])
    return tuple(t if t.ndim < 3 else t.repeat(1, length // t.shape[1], 1) for t in (a, b))


def learned(source: list, null: list | None = None, weight=0.0) -> dict:
    """θ_F of a source CONDITIONING for the whole run: "uncond" [1,B,tokens,C], and
    "uncond_pooled" [1,B,P] if it has one."""
    def between(a, b):
        if weight == 0:
            return a
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(f"The negative's embedding is {b.shape[-1]} wide, the source's {a.shape[-1]}: encode both "
                             "with the same CLIP, or set interpolation to 0.")
        return slerp(weight, *torch.broadcast_tensors(*repeated(a, b.to(a))))

    (a, extras), (b, others) = source[0], (null or source)[0]
    pooled = extras.get("pooled_output")
    found = {"uncond": between(a, b)}
    if pooled is not None:
        found["uncond_pooled"] = between(pooled, others["pooled_output"])
    return {name: Theta(t.float().cpu()[None], "run", "prediction") for name, t in found.items()}


def learn(network, path, sigmas, *, interpolation, **_) -> Found:
    return Found(theta=learned(network.prompts["source"], network.prompts.get("null"), interpolation))


def check(*, negative, interpolation, **_):
    if negative != (interpolation > 0):
        raise ValueError(f"Negative-Prompt Invert has an interpolation of {interpolation:g} and "
                         f"{'a' if negative else 'no'} negative: connect the null prompt and set interpolation over 0, "
                         "or neither (the paper).")


METHOD = Method("Negative Prompt", "Negative-Prompt Invert", learn=learn, along="DDIM", check=check,
                settings={"interpolation": Setting(0.0, 0.0, 1.0)},
                no_flow="Negative-prompt inversion is known for eps and v models, this MODEL is a flow model: use DDIM "
                        "Invert, and CFG 1 to reconstruct.",
                theta={"uncond": Kept("run", "prediction", 4), **UNCOND_POOLED})
