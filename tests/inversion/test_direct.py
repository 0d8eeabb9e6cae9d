"""Direct Inversion's offsets take a replay to the source, and do not change what the editors read."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from exact_inversions import NEGATIVE, STEPS, invert, picture, replay
from node_execution import executor  # noqa: F401
from runs import relative


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_an_offset_is_its_share_of_the_distance_to_the_source(scale):
    """Each replay step corrects `scale` of its distance from the source and leaves 1 - scale."""
    model = tiny.sd15(output=0.05)
    inversion, plain = invert("Direct", model, cfg=7.5, scale=scale), invert("DDIM", model)
    assert all(torch.equal(a, b) for a, b in zip(inversion.latents, plain.latents))
    offsets, sigmas = inversion.theta["offset"].tensor, inversion.sigmas
    drifted = replay(model, inversion, 7.5)
    error = relative(model.model.process_latent_in(drifted), inversion.latents[-1])
    assert error < 1e-5 if scale == 1 else error > 1e-2
    if scale == 0:
        assert not offsets.count_nonzero()
        assert relative(drifted, replay(model, plain, 7.5)) < 1e-4
        return
    m, solver, _, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    for steps in range(1, 3):
        x = model.model.process_latent_in(SamplerCustom.execute(
            m, False, 0, 7.5, tiny.cond(), tiny.cond(seed=NEGATIVE), solver, sigmas[:steps + 1],
            latent).result[0]["samples"])
        missed = offsets[steps - 1] / scale
        torch.testing.assert_close(inversion.latents[steps] - x, (1 - scale) * missed, rtol=1e-3, atol=1e-3)


def test_direct_inversion_gives_editors_what_ddim_inversion_gives():
    """The editors' source branch reads the same latents, bit for bit. The guided pass that records
    the offsets costs extra."""
    model = tiny.sdxl()
    direct, plain = invert("Direct", model, picture(model, 2), cfg=7.5), invert("DDIM", model, picture(model, 2))
    assert all(torch.equal(a, b) for a, b in zip(direct.latents, plain.latents))
    assert torch.equal(direct.sigmas, plain.sigmas) and direct.trajectory == plain.trajectory == "deterministic"
    assert plain.provenance["evaluations"] == 2 * STEPS and direct.provenance["evaluations"] == 3 * 2 * STEPS
