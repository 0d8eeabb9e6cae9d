"""The loop that follows a pivot: its optimiser and its memory."""
import weakref

import torch
from palimpsest.host.saved import Held
from palimpsest.inversion import pivotal_tuning


def test_the_last_look_of_a_step_keeps_no_graph_beside_the_next():
    """A second graph would take the memory twice, gigabytes on SD."""
    saved, path = [], [torch.full((1, 1, 2, 2), value) for value in (4.0, 2.0, 1.0, 0.0)]

    def predict(x, sigma, pivot):
        assert not any(held() for held in saved)
        return lambda theta: (theta.exp().view_as(x), 0)

    def pack(tensor):
        held = Held(tensor.detach())
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, Held.unpack):
        sigmas = torch.tensor([14.0, 5.0, 1.0, 0.0])
        _, history = pivotal_tuning.follow(predict, path, sigmas, torch.zeros(1, 4), iterations=2, tolerance=0.0)
    assert saved and [updates for *_, updates in history] == [2, 2, 2]


def test_lbfgs_solves_each_row_of_a_quadratic_by_itself():
    """Least squares with twelve unknowns and residuals that can vanish, on two rows of different scale."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 30.0])[:, None, None]
    b = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def solve(rows, count=40):
        x, optimiser = torch.zeros(len(rows), 12, dtype=torch.float64), pivotal_tuning.LBFGS()
        for _ in range(count):
            residual = torch.einsum("bij,bj->bi", a[rows], x) - b[rows]
            x = optimiser.step(x, torch.einsum("bij,bi->bj", a[rows], residual) * 2, residual.square().sum(1))
        return x

    both = solve([0, 1])
    assert (torch.einsum("bij,bj->bi", a, both) - b).abs().max() < 1e-6
    for i in (0, 1):
        assert torch.allclose(both[i], solve([i])[0], rtol=1e-6, atol=1e-9)
