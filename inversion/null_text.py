"""Null-text Inversion for Editing Real Images using Guided Diffusion Models. Mokady, Hertz, Aberman, Pritch, Cohen-Or,
CVPR 2023. arXiv:2211.09794

Sampling with guidance w leaves the pivot trajectory z*_T … z*_0 that was inverted at guidance 1. So at each step t the
unconditional embedding ∅_t is optimised until the guided step lands on the pivot,
    min over ∅_t of ‖z*_{t-1} - z_{t-1}(z̄_t, ∅_t, C)‖²,    ε = ε(z̄_t, ∅_t) + w·(ε(z̄_t, C) - ε(z̄_t, ∅_t)),
and the next step goes on from the z̄_{t-1} it reached, with ∅_{t-1} = ∅_t. In x and σ the step is Euler's; the loss is
the mean square in z = x/√(1+σ²), the paper's latent (z = x on flow models). As in the authors' code a picture's step
ends early under a loss of 1e-5, which grows by 2e-5 for every fiftieth of the schedule.

Differs from the paper to reach the same with less. ∅_T may be the source prompt's embedding, where the guidance cancels
(negative-prompt inversion), instead of the null prompt's. L-BFGS takes Adam's place (pivotal_tuning.py). ε(C) is
evaluated once a step, a forward that is near enough gets no backward, and the best forward of a step is the step. The
embedding kept is the best seen, so no step ends worse than it began.

Checked against: diffusers@58eb52c, its community pipeline: the loss, its limit and the embeddings learned (numbers in
tests/data/null_text.json).
"""
from functools import partial

from torch import Tensor

from .method import UNCOND_POOLED, Found, Kept, Method, Setting
from .pivotal_tuning import TOLERANCE, Network, follow
from .trajectory import Theta

STARTS = "source prompt", "negative"


def optimise(cond, uncond, path: list, sigmas: Tensor, start: Tensor, *, cfg: float, **settings) -> tuple[Theta, list]:
    """Follow the pivot `path` (S+1 latents [B,C,…] in the order of sigmas) with guidance `cfg`, optimising the
    embedding in the null prompt's place, from `start` [1 or B,tokens,D]; settings are `follow`'s.

    cond(x, sigma [B]) and uncond(x, sigma [B], embedding [B,tokens,D]) return x0, the latter differentiable. Returns
    Theta [S,B,tokens,D] and for each step (first loss, last loss, updates).
    """
    def predict(x, sigma, pivot):
        guide = cond(x, sigma)

        def guided(embedding):
            null = uncond(x, sigma, embedding)
            return null + cfg * (guide - null), 0  # ε(z̄_t, ∅_t) + w·(ε(z̄_t, C) - ε(z̄_t, ∅_t))

        return guided

    learned, history = follow(predict, path, sigmas, start.float().expand(len(path[0]), -1, -1), **settings)
    return Theta(learned, "step", "prediction"), history


def learn(network: Network, path, sigmas, *, start, **settings) -> Found:
    prompt = "source" if start == "source prompt" else "null"
    embedding, width = network.embedding(prompt), network.prompts["source"][0][0].shape[-1]
    if embedding.shape[-1] != width:
        raise ValueError(f"The negative's embedding is {embedding.shape[-1]} wide, the source's {width}: encode both "
                         "with the same CLIP.")
    theta, losses = optimise(partial(network.x0, "source"), partial(network.x0, prompt), path, sigmas, embedding,
                             **settings)
    pooled = {f"uncond_{name}": kept for name, kept in network.pooled(prompt).items()}
    return Found(theta={"uncond": theta, **pooled}, notes={"losses": losses})


def check(*, negative, start, **_):
    if (start == "negative") != negative:
        raise ValueError(f"Null-Text Optimize starts from the {start} and has {'a' if negative else 'no'} negative: "
                         "connect the empty prompt and set start to negative, or neither.")


METHOD = Method("Null-Text", "Null-Text Optimize", learn=learn, asks="gradients", cfg=7.5, check=check,
                settings={"iterations": Setting(10, 1, 500), "tolerance": TOLERANCE,
                          "start": Setting(STARTS[0], choices=STARTS)},
                theta={"uncond": Kept("step", "prediction", 4), **UNCOND_POOLED}, guided=True)
