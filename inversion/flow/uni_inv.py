"""UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models. Jiao, Huang, Wang, Liao, 2025.
arXiv:2504.13109

Euler's step from the noisier Z_{t_i} to Z_{t_{i-1}} moves along v(Z_{t_i}, t_i). Uni-Inv undoes it with a guess of that
unknown latent, to which the last step's velocity leads (predictor), and moves along the velocity there (corrector):
    Z̄_{t_i} = Z_{t_{i-1}} - (t_{i-1} - t_i)·v_{i-1},   v_i = v(Z̄_{t_i}, t_i),
    Z_{t_i} = Z_{t_{i-1}} - (t_{i-1} - t_i)·v_i.
In x and σ it is DDIM inversion with an extrapolated guess, v being (x - x0)/σ. On eps and v models, which the authors'
DDIM scheduler serves on SDXL, v is ε in x = z/√ᾱ, so both lines stay as they are.

Differs from the paper: the first step has no v_{i-1}. Its guess is the picture, as in DDIM inversion and as the
authors' zero start has it; by default they predict v at t = 0, one evaluation more, where x0 cannot tell v. α, which
ends the inversion early, belongs to Uni-Edit: here Replay's `start` is free.

Checked against: DSL-Lab/UniEdit-Flow@69f7e81 (its zero start; numbers in tests/data/uni_inv.json).
"""
from torch import Tensor
from tqdm.auto import trange

from ..grid import report_step, scale
from ..method import Found, Method


def invert(model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, flow=False,
           data=1.0) -> list:
    """Follow the reverse process from the clean latent x [B,C,…] to σ[0]: one model call a step, none at σ = 0.

    model(x, sigma [B], **extra_args) returns x0; sigmas [S+1] descend to 0; callback gets k-diffusion's dict; flow and
    data: `scale`'s. Returns S+1 latents in the order of sigmas, the clean one last.
    """
    path, v = [x], None
    rows = x.new_ones(x.shape[0])
    levels = sigmas.flip(0)
    for i in trange(len(levels) - 1, disable=disable):
        clean, noisy = levels[i], levels[i + 1]
        guess = x * scale(clean, noisy, flow, data) if v is None else x + (noisy - clean) * v  # Z̄_{t_i}
        denoised = model(guess, noisy * rows, **(extra_args or {}))
        report_step(callback, i, guess, noisy, denoised)
        v = (guess - denoised) / noisy  # v_i
        x = x + (noisy - clean) * v  # Z_{t_i}
        path.append(x)
    return path[::-1]


def inverted(*args, **kwargs) -> Found:
    return Found(invert(*args, **kwargs))


METHOD = Method("Uni-Inv", "Uni-Inv", inverted, steps=15, scheduler="simple")
