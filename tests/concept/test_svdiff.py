"""SVDiff against Eq. 2."""
import math

import pytest
import torch
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.editing.learning import applied, learn_concept

import tiny
from concepts import images, next_losses, prediction
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


@pytest.mark.parametrize("shape", [(6, 4), (4, 6, 3, 3)])
def test_the_gradient_of_the_shifts_is_that_of_finite_differences(shape):
    """Also where a singular value is cut at 0, whose gradient is 0."""
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), SpectralShifts(1e-3)
    with torch.inference_mode(False):
        theta = {name: part.detach().clone().double() for name, part in basis.start(weight, torch.Generator()).items()}
        shifts = torch.tensor([0.3, -99.0, -0.1, 0.5], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda δ: basis.delta({**theta, "δ": δ}, weight.clone()), shifts)


def test_in_training_a_shift_has_its_share_of_the_weights_gradient():
    """∂L/∂δ_i = u_iᵀ (∂L/∂W) v_i, at δ = 0. AdamW's first mean is a tenth of a gradient."""
    model, clip = tiny.sd15(), tiny.clip()
    few, every = (learn_concept(model, clip, images(model), [basis], steps=1, norm=math.inf)
                  for basis in (SpectralShifts(1e-3), AllWeights(1e-3)))
    of, whole = ({name: state["exp_avg"] for name, state in zip(run.weights, run.state["optimiser"]["state"].values(),
                                                                strict=True)} for run in (few, every))
    names = {name for name, mean in whole.items() if mean.ndim > 1}
    assert of.keys() == names
    inside = [w for w in model.model.diffusion_model.parameters() if w.ndim > 1]
    pairs = []
    for name, weight in zip(few.weights, inside, strict=True):
        u, _, v = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        pairs.append((of[name], (u.T @ whole[name].flatten(1) @ v.T).diagonal()))
    assert relative(*map(torch.cat, zip(*pairs))) < 1e-5


def test_the_file_predicts_as_in_training():
    model, clip = tiny.sd15(), tiny.clip()
    given, trained = images(model), [SpectralShifts(1e-1)]
    learned = learn_concept(model, clip, given, trained, steps=3)
    m, c = applied(model, clip, learned)
    training, served = next_losses(model, clip, given, trained, learned, (m, c), "a photo of sks")
    assert served == pytest.approx(training, rel=1e-5)
    prompt = tiny.encode(clip, "a photo of sks")
    assert relative(prediction(model, prompt)[1], prediction(m, prompt)[1]) > 1e-2
