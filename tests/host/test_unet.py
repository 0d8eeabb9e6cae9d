"""The places of attention in a U-Net, and each one's share of the latent's side."""
from palimpsest.host.unet import host_attention, resolutions

import tiny
from runs import Case


def test_shares_of_the_latents_side_are_those_of_the_grids():
    for family in tiny.UNETS:
        seen = {}

        def note(q, k, v, options):
            seen[(*options["block"], options["block_index"])] = options["activations_shape"][-1] / 16
            return host_attention(q, k, v, options)

        case = Case(family, size=16, steps=2)
        m = case.model.clone()
        known = resolutions(m.model.diffusion_model)
        for section, number, _ in known:
            m.set_model_attn1_replace(note, section, number)
        case.sample(m)
        assert seen == known, family
