"""Object-Aware Blend: each object starts from the source's latent at its own step."""
import pytest
import torch
from palimpsest.nodes.blending.object_aware import PalimpsestObjectAwareBlend

import tiny
from recording import Flow, calls_of, half
from runs import Case


def objects(case, *pairs):
    """edit(MODEL): one Object-Aware Blend per pair (mask, start)."""
    def edit(model):
        for mask, start in pairs:
            model = PalimpsestObjectAwareBlend.execute(model, case.inversion, mask, start).result[0]
        return model
    return edit


@pytest.mark.parametrize("family", [*tiny.UNETS, *tiny.FLOWS])
def test_each_object_begins_from_the_sources_latent_at_its_own_step(family):
    """Whatever noise the run began with. Until then the object's place shows the source, and outside all places the
    source stays, bit for bit."""
    case = Case(family, steps=10) if family in tiny.UNETS else Flow(family, steps=10)
    percent = case.model.get_model_object("model_sampling").percent_to_sigma
    early, late = torch.zeros(2, 1, 64, 64)
    early[:, :, :24], late[:, :, 40:] = 1, 1
    noise = torch.randn(case.noise.shape, generator=torch.Generator().manual_seed(5)) * case.noise.std()
    begun = torch.zeros(8, 8, dtype=torch.bool)
    for sigma, x, got in calls_of(case, objects(case, (late, 0.6), (early, 0.25)), latent=noise):
        assert torch.equal(x[..., ~begun], case.inversion.at(sigma)[..., ~begun])
        begun[:, :3] |= sigma <= percent(0.25)
        begun[:, 5:] |= sigma <= percent(0.6)
        assert torch.equal(got[..., ~begun], case.inversion.latents[-1][..., ~begun])
        assert not begun.any() or not torch.isclose(got[..., begun], case.inversion.latents[-1][..., begun]).any()
    assert begun.float().mean() == 6 / 8


def test_the_order_of_objects_does_not_matter_and_each_ones_start_does():
    case = Case(steps=10)
    a, b = (half()[None], 0.3), (1 - half()[None], 0.6)
    first = case.sample(objects(case, a, b)(case.model))
    assert torch.equal(case.sample(objects(case, b, a)(case.model)), first)
    soft = (0.5 * half()[None], 0.3)
    assert torch.equal(case.sample(objects(case, soft, soft)(case.model)), case.sample(objects(case, soft)(case.model)))
    for other in ((a, (b[0], 0.5)), ((a[0], 0.1), b), (a,)):
        assert not torch.allclose(case.sample(objects(case, *other)(case.model)), first, atol=1e-3)
