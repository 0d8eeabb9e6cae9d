"""Blended Latent's mask shrinks over the schedule, with an inversion or with the host's noise mask."""
import pytest
import torch
from palimpsest.nodes.blending.blended_latent import PalimpsestBlendedLatent

import tiny
from nodes import common_ksampler
from recording import Flow, calls_of
from runs import Case


def dot(size=8):
    mask = torch.zeros(1, 8 * size, 8 * size)
    mask[0, 8 * 4, 8 * 4] = 1  # in cell (4, 4)
    return mask


def square(radius, size=8):
    cells = torch.zeros(size, size, dtype=torch.bool)
    cells[4 - radius:5 + radius, 4 - radius:5 + radius] = True
    return cells


@pytest.mark.parametrize("family", [*tiny.UNETS, *tiny.FLOWS])
def test_a_shrinking_mask_is_a_cell_smaller_at_every_part_of_the_schedule(family):
    """With two cells until 0.6 the mask has 5² cells until 0.3, 3² until 0.6, then its own size. Outside it the
    source stays, bit for bit."""
    case = Case(family, steps=10) if family in tiny.UNETS else Flow(family, steps=10)
    percent = case.model.get_model_object("model_sampling").percent_to_sigma
    source, radii = case.inversion, []
    for sigma, x, got in calls_of(case, lambda m: PalimpsestBlendedLatent.execute(m, 2, 0.6, source, dot()).result[0]):
        radii.append((sigma > percent(0.3)) + (sigma > percent(0.6)))
        outside = ~square(radii[-1])
        assert torch.equal(x[..., outside], source.at(sigma)[..., outside])
        assert torch.equal(got[..., outside], source.latents[-1][..., outside])
        assert not torch.equal(got[..., ~outside], source.latents[-1][..., ~outside])
    assert set(radii) == {0, 1, 2} and radii == sorted(radii, reverse=True)


def test_without_an_inversion_the_hosts_noise_mask_shrinks():
    """At every call the host blends outside the grown mask. Differential Diffusion receives it,
    before or after the node."""
    case = Case(steps=10)
    cells = square(0).float()[None]
    seen = []

    def inner(sigma, mask, extra_options):
        seen.append((float(sigma[0]), mask.clone()))
        return mask

    model = case.model.clone()
    model.set_model_denoise_mask_function(inner)
    model = PalimpsestBlendedLatent.execute(model, 2, 0.6).result[0]
    found = masked(case, model, cells)
    percent = case.model.get_model_object("model_sampling").percent_to_sigma
    assert len(seen) == 10
    for sigma, mask in seen:
        assert torch.equal(mask[0, 0] == 1, square((sigma > percent(0.3)) + (sigma > percent(0.6))))
    picture = case.latent[..., ~square(0)]
    torch.testing.assert_close(found[..., ~square(0)], picture, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, masked(case, case.model, cells), atol=1e-3)
    assert torch.equal(found, masked(case, PalimpsestBlendedLatent.execute(case.model, 2, 0.6).result[0], cells))


def masked(case, model, cells):
    """The host's KSampler on a LATENT with a noise mask."""
    latent = {"samples": case.latent, "noise_mask": cells}
    with torch.inference_mode():
        return common_ksampler(model, 3, 10, 4.0, "euler", "ddim_uniform", case.target, case.null, latent)[0]["samples"]


def test_blended_latent_takes_both_or_neither():
    case = Case()
    for inputs, lacks in (({"mask": dot()}, "no INVERSION"), ({"inversion": case.inversion}, "no MASK")):
        with pytest.raises(ValueError, match=f"{lacks}: connect both"):
            PalimpsestBlendedLatent.execute(case.model, 3, 0.75, **inputs)
    with pytest.raises(ValueError, match="it has none: set one with Set Latent Noise Mask"):
        case.sample(PalimpsestBlendedLatent.execute(case.model, 3, 0.75).result[0])
    two = PalimpsestBlendedLatent.execute(case.model, 3, 0.75, case.inversion, dot().repeat(2, 1, 1)).result[0]
    with pytest.raises(ValueError, match="2 masks.*3 rows"):
        case.sample(two, latent=case.noise.repeat(3, 1, 1, 1))
