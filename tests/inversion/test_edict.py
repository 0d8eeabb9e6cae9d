"""EDICT returns what it inverted, and reaches the latents of the authors' code."""
import pytest
import torch
from palimpsest.inversion import edict

from closed_form import AUTHORS, authors, denoiser, levels, noisy
from node_execution import executor  # noqa: F401
from runs import relative


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 1, 3, 8)])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("steps", [10, 40])
def test_edict_returns_what_it_inverted(steps, first, flow, shape):
    model, sigmas, x = denoiser(flow), levels(steps, flow), noisy(*shape)
    pairs = edict.invert(model, x, sigmas, disable=True, flow=flow)
    assert relative(pairs[0][0], x) > 0.3 and not torch.equal(*pairs[0])
    found = edict.denoise(model, *pairs[first], sigmas[first:], disable=True, flow=flow, first=first)
    assert relative(found[0], x) < 1e-10 and relative(found[1], x) < 1e-10


def test_edict_reaches_the_latents_of_the_authors_code():
    x, sigmas = authors()
    for found, name in zip(edict.invert(denoiser(False), x, sigmas, disable=True)[0], ("x", "y")):
        z = found / (1 + sigmas[0] ** 2).sqrt()
        torch.testing.assert_close(z.flatten()[:8], torch.tensor(AUTHORS["edict"][name], dtype=torch.float64),
                                   rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps, p, fits", [(50, 0.93, True), (100, 0.93, True), (150, 0.93, False), (10, 0.5, True),
                                            (20, 0.5, False), (50, 0.8, False), (200, 0.96, True)])
def test_where_the_inverse_grows_past_what_a_latent_resolves_it_is_refused(steps, p, fits):
    """By p⁻² a step, of what a float32 misses at the noise."""
    if not fits:
        with pytest.raises(ValueError, match="raise p .*or take fewer steps"):
            edict.check(steps=steps, p=p)
        return
    edict.check(steps=steps, p=p)
    x, sigmas = noisy(2, 3, 8), levels(steps, False)
    kept = [latent.float().double() for latent in edict.invert(denoiser(False), x, sigmas, disable=True, p=p)[0]]
    assert relative(edict.denoise(denoiser(False), *kept, sigmas, disable=True, p=p)[0], x) < 1e-2
