"""Prompt Tuning Inversion for Text-Driven Image Editing Using Diffusion Models. Dong, Xue, Duan, Han, ICCV 2023.
arXiv:2305.04441

The picture is inverted with guidance 0, which is unconditional. Then at each step t of sampling with guidance ω the
conditional embedding c_t is tuned until the step lands on the trajectory (Eq. 7, Alg. 1),

    c_t = arg min ‖z*_{t-1} - z_{t-1}(z̃_t, t, c_t)‖²,    c_T = c*, the target's embedding, and c_{t-1} begins as c_t,

and the edit is sampled with c_t = η·c* + (1 - η)·c_t (Eq. 9), done where the target is sampled, in editing/replay.py.

Differs from the paper: any deterministic trajectory is followed; the paper's is DDIM Invert's of an empty source
prompt. c_T may be another prompt's embedding, such as the source's, so that one inversion serves many targets. L-BFGS
(pivotal_tuning.py) takes the place of N = 5 gradient steps of β = 0.01, and a step ends early once it is near enough.
On models that read a pooled embedding too, it is not tuned, but mixed by η all the same. The defaults of η and ω are
this pack's: the paper's equations, algorithm, figures and tables give none.

Checked against: the paper's equations.
"""
from functools import partial

import torch
from torch import Tensor

from .method import Found, Kept, Method, Setting
from .pivotal_tuning import TOLERANCE, Network, follow
from .trajectory import Theta


def optimise(null, cond, path: list, sigmas: Tensor, start: Tensor, *, cfg: float, **settings) -> tuple[Theta, list]:
    """Tune c_t along `path`, S+1 latents, from `start` [B,tokens,D]; settings are `follow`'s.

    null(x, sigma [B]) and cond(x, sigma [B], c [B,tokens,D]) return x0, the latter differentiable. Returns Theta
    [S,B,tokens,D] and for each step (first loss, last loss, updates).
    """
    def predict(x, sigma, pivot):
        unguided = null(x, sigma)
        return lambda c: (unguided + cfg * (cond(x, sigma, c) - unguided), 0)

    tuned, history = follow(predict, path, sigmas, start, **settings)  # Eq. 7, Alg. 1
    return Theta(tuned, "step", "prediction"), history


def learn(network: Network, path, sigmas, *, mix, **settings) -> Found:
    start = "target" if "target" in network.prompts else "source"
    theta, losses = optimise(partial(network.x0, "null"), partial(network.x0, start), path, sigmas,
                             network.embedding(start), **settings)
    pooled = {f"cond_{name}": kept for name, kept in network.pooled(start).items()}
    mixed = Theta(torch.tensor([mix]), "run", "prediction")
    return Found(theta={"cond": theta, "cond_mix": mixed, **pooled}, notes={"losses": losses})


METHOD = Method("Prompt Tuning", "Prompt Tuning Invert", learn=learn, asks="gradients", cfg=7.5, settings={
    "iterations": Setting(10, 1, 500), "tolerance": TOLERANCE, "mix": Setting(0.8, 0.0, 0.99)},
    theta={"cond": Kept("step", "prediction", 4), "cond_mix": Kept("run", "prediction", 1),
           "cond_pooled": Kept("run", "prediction", 3, optional=True)}, guided=True)
