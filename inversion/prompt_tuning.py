"""Prompt Tuning Inversion for Text-Driven Image Editing Using Diffusion Models. Dong, Xue, Duan, Han, ICCV 2023.
arXiv:2305.04441

The picture is inverted with guidance 0, which is unconditional. Then at each step t of sampling with guidance ω the
conditional embedding c_t is tuned until the step lands on the trajectory (Eq. 7, Alg. 1),

    c_t = arg min ‖z*_{t-1} - z_{t-1}(z̃_t, t, c_t)‖²,    c_T = c*, the target's embedding, and c_{t-1} begins as c_t,

and the edit is sampled with c_t = η·c* + (1 - η)·c_t (Eq. 9), done where the target is sampled, in editing/replay.py.

Differs from the paper: any deterministic trajectory is followed; the paper's is DDIM Invert's of an empty source
prompt. c_T may be another prompt's embedding, such as the source's, so that one inversion serves many targets. L-BFGS
(null_text.py) takes the place of N = 5 gradient steps of β = 0.01, and a step ends early once it is near enough. On
models that read a pooled embedding too, it is not tuned, but mixed by η all the same. The paper's text was at hand as
its equations, algorithm, figures and tables only: they give no value of η and none of ω; both defaults are this pack's.
"""
from torch import Tensor

from .pivotal_tuning import follow
from .trajectory import Theta


def optimise(null, cond, path: list, sigmas: Tensor, start: Tensor, *, cfg: float, **settings) -> tuple[Theta, list]:
    """Tune c_t along `path`, S+1 latents, from `start` [B,tokens,D]; settings are `follow`'s.

    null(x, sigma [B]) and cond(x, sigma [B], c [B,tokens,D]) return x0, the latter differentiable. Returns Theta
    [S,B,tokens,D] and for each step (first loss, last loss, updates).
    """
    def predict(x, sigma, pivot):
        unguided = null(x, sigma)
        return lambda c: (unguided + cfg * (cond(x, sigma, c) - unguided), 0)

    tuned, history = follow(predict, path, sigmas, start, **settings)
    return Theta(tuned, "step", "prediction"), history
