"""FireFlow against the paper's equation; test_rf_solver.py has what both second-order solvers do."""
import torch
from palimpsest.inversion.flow import fireflow

from closed_form import denoiser, levels, network, noisy
from node_execution import executor  # noqa: F401
from runs import relative


def test_each_step_begins_with_the_velocity_in_the_middle_of_the_last():
    x, sigmas = noisy(3, 8), levels(7, True) * 0.99 + 0.01
    path, z, v = [x], x, network(x, sigmas[-1])
    for clean, noise in zip(sigmas.flip(0), sigmas.flip(0)[1:]):
        half = z + (noise - clean) / 2 * v
        v = network(half, (noise + clean) / 2)
        z = z + (noise - clean) * v
        path += [half, z]
    found = fireflow.METHOD.invert(denoiser(True), x, sigmas, None, None, True).latents
    assert relative(z, x) > 0.3
    torch.testing.assert_close(found, path[::-1], rtol=1e-12, atol=1e-12)
