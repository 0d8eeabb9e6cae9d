"""BDIA returns what it inverted and satisfies the paper's equation. A gamma that would blow up is refused."""
import pytest
from palimpsest.inversion import bdia

import tiny
from closed_form import denoiser, levels, network, noisy
from exact_inversions import invert
from node_execution import executor  # noqa: F401
from runs import relative


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 1, 3, 8)])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("steps, gamma", [(10, 0.5), (40, 1.0)])
def test_bdia_returns_what_it_inverted(steps, gamma, first, flow, shape):
    model, sigmas, x = denoiser(flow), levels(steps, flow), noisy(*shape)
    path, offsets = bdia.invert(model, x, sigmas, disable=True, gamma=gamma, flow=flow)
    assert relative(path[0], x) > 0.3
    found = bdia.denoise(model, path[first], offsets[first], sigmas[first:], disable=True, gamma=gamma, flow=flow)
    assert relative(found, x) < 1e-10


def test_three_neighbours_of_bdia_obey_the_papers_equation():
    """z_{i-1} = γ·(z_{i+1} - z_i/a_{i+1} + b_{i+1}/a_{i+1}·ε(z_i)) + a_i·z_i + b_i·ε(z_i)."""
    sigmas, gamma = levels(10, False), 0.7
    path, _ = bdia.invert(denoiser(False), noisy(3, 8), sigmas, disable=True, gamma=gamma)
    alpha = 1 / (1 + sigmas ** 2)
    z = [x * a.sqrt() for x, a in zip(path, alpha)]

    def ab(n, c):
        a = (alpha[c] / alpha[n]).sqrt()
        return a, (1 - alpha[c]).sqrt() - a * (1 - alpha[n]).sqrt()

    for i in range(1, 10):
        eps, (a, b), (a_up, b_up) = network(z[i], sigmas[i]), ab(i, i + 1), ab(i - 1, i)
        expected = gamma * (z[i - 1] - z[i] / a_up + b_up / a_up * eps) + a * z[i] + b * eps
        assert relative(z[i + 1], expected) < 1e-12


def test_a_gamma_that_many_steps_would_blow_up_is_refused():
    with pytest.raises(ValueError, match=r"gamma 0.5, 50 steps .* by 10\^15.*1.0 from 40 steps"):
        invert("BDIA", tiny.sd15(), steps=50)
    with pytest.raises(ValueError, match=r"by 10\^400"):
        invert("BDIA", tiny.sd15(), steps=400, gamma=0.1)
