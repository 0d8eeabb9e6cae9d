"""SVDiff against Eq. 2."""
import pytest
import torch
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.editing.learning import learn_concept

import tiny
from concepts import images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (6, 4, 3, 3)])
def test_the_shifted_weight_is_eq_2(shape):
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), SpectralShifts(1e-3)
    theta = basis.start(weight, torch.Generator())
    assert not basis.delta(theta, weight).count_nonzero()
    theta["δ"] = torch.randn(theta["δ"].shape, generator=torch.Generator().manual_seed(1))
    theta["δ"][1] = -99
    u, sigma, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    shifted = (sigma + theta["δ"]).clamp(min=0)
    assert (shifted == 0).any()
    expected = sum(shifted[i] * torch.outer(u[:, i], v[i]) for i in range(len(sigma)))
    assert relative(weight + basis.delta(theta, weight), expected.view(shape)) < 1e-5


def test_only_the_shifts_learn():
    model = tiny.sd15()
    learned = learn_concept(model, tiny.clip(), images(model), [SpectralShifts(1e-2)], steps=2)
    matrices = [w for w in model.model.diffusion_model.parameters() if w.ndim > 1]
    assert sum(t.numel() for t in learned.state["theta"]) == sum(min(w.flatten(1).shape) for w in matrices)
    assert len(learned.weights) == len(matrices) and all(v.count_nonzero() for v in learned.weights.values())
