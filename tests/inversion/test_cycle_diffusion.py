"""CycleDiffusion's levels share their noise as in the posterior, edit-friendly DDPM's do not."""
import pytest
import torch
from palimpsest.inversion import cycle_diffusion
from palimpsest.inversion.grid import independent_path

from node_execution import executor  # noqa: F401


def test_levels_of_ddpm_are_independent_and_those_of_cycle_diffusion_share_their_noise():
    """Both have the marginal N(x_0, σ²). The posterior keeps √(1 - η²·(1 - σ'²/σ²)) of the
    noise from level to level."""
    x, sigmas, eta = torch.zeros(1, 40000), torch.tensor([14.6, 5.0, 2.0, 0.7, 0.0]), 0.6
    for path, kept in ((independent_path(x, sigmas, 3), lambda r: 0.0),
                       (cycle_diffusion.posterior_path(x, sigmas, 3, eta),
                        lambda r: (1 - eta ** 2 * (1 - r ** 2)) ** 0.5)):
        assert torch.equal(path[-1], x)
        noise = [z / s for z, s in zip(path[:-1], sigmas)]
        assert all(float(n.std()) == pytest.approx(1, abs=0.02) for n in noise)
        for n, c, r in zip(noise, noise[1:], (sigmas[1:-1] / sigmas[:-2]).tolist()):
            assert float((n * c).mean()) == pytest.approx(kept(r), abs=0.02)
