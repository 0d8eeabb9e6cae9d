"""EDICT: Exact Diffusion Inversion via Coupled Transformations. Wallace, Gokul, Naik, CVPR 2023. arXiv:2211.12446

Two latents x and y take turns: each is moved with the noise predicted from the other, then both are drawn together,
    x_inter = a_t·x_t + b_t·ε(y_t, t)            x_{t-1} = p·x_inter + (1-p)·y_inter
    y_inter = a_t·y_t + b_t·ε(x_inter, t)        y_{t-1} = p·y_inter + (1-p)·x_{t-1}
Every line is affine in what it changes and reads nothing else that it changes, so it is undone exactly, in reverse order.
As the authors do, x and y take turns at going first. In x = z/√ᾱ the move a·z + b·ε is Euler's x + (σ' - σ)·ε, and the
mixing stays as it is, both latents being of one level.

Differs from the paper: the latents are in double precision, the network in its own; σ = 0 is the clean end (ᾱ = 1).
Checked against: salesforce/EDICT@c35a81f (numbers in tests/data/exact.json).
"""
from torch import Tensor
from tqdm.auto import trange

from .steps import first_step, is_flow, noise_at, recorded, settled, tell, widened

P = 0.93


def denoise_step(pair: list, turn: int, n: Tensor, c: Tensor, noise, p: float) -> list:
    """One step from level n to the cleaner c; pair[turn] goes first. noise(latent, its level) predicts at n."""
    pair = list(pair)
    pair[turn] = pair[turn] + (c - n) * noise(pair[1 - turn], n)
    pair[1 - turn] = pair[1 - turn] + (c - n) * noise(pair[turn], c)
    x = p * pair[0] + (1 - p) * pair[1]
    return [x, p * pair[1] + (1 - p) * x]


def invert_step(pair: list, turn: int, n: Tensor, c: Tensor, noise, p: float) -> list:
    """The exact inverse of `denoise_step`, from level c to the noisier n."""
    x, y = pair
    y = (y - (1 - p) * x) / p
    pair = [(x - (1 - p) * y) / p, y]
    pair[1 - turn] = pair[1 - turn] - (c - n) * noise(pair[turn], c)
    pair[turn] = pair[turn] - (c - n) * noise(pair[1 - turn], n)
    return pair


def _walk(step, pair, levels, turns, model, dtype, extra_args, callback, disable, p, flow):
    """Yields the pair after each step between successive levels; two model calls a step."""
    for i in trange(len(turns), disable=disable):
        n, c = sorted(levels[i:i + 2], reverse=True)
        seen = {}

        def noise(latent, level):
            seen["x0"], eps = noise_at(model, latent, level, n, dtype, extra_args, flow)
            return eps

        before, pair = pair, step(pair, turns[i] % 2, n, c, noise, p)
        tell(callback, i, before[0].to(dtype), n, seen["x0"])
        yield pair


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, p=P, flow=False) -> list:
    """The coupled latents from the clean x [B,C,…], with y = x there, to σ[0]: S+1 pairs [x, y] in the order of sigmas, the
    clean one last. sigmas [S+1] descend to 0."""
    start = [widened(x)] * 2
    turns = range(len(sigmas) - 2, -1, -1)
    found = _walk(invert_step, start, widened(sigmas).flip(0), turns, model, x.dtype, extra_args, callback, disable, p, flow)
    return [start, *found][::-1]


def denoise(model, x: Tensor, y: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, p=P, flow=False,
            first=0) -> list:
    """The pair [x, y] at σ[-1], from the pair at σ[0], which is level `first` of the whole schedule."""
    pair, turns = [widened(x), widened(y)], range(first, first + len(sigmas) - 1)
    for pair in _walk(denoise_step, pair, widened(sigmas), turns, model, x.dtype, extra_args, callback, disable, p, flow):
        pass
    return pair


def reverse(inversion):
    """Replay's solver: y starts beside x as far as it stood in the inversion (θ_F "y_minus_x", one a level)."""
    def solve(model, x, sigmas, extra_args=None, callback=None, disable=None):
        first = first_step(inversion, sigmas)
        x = settled(inversion, first, x)
        y = widened(x) + recorded(inversion, "y_minus_x", first, widened(x))
        found = denoise(model, x, y, sigmas, extra_args, callback, disable, p=inversion.provenance["p"], flow=is_flow(inversion),
                        first=first)
        return found[0].to(x)
    return solve
