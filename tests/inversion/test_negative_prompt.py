"""Negative-prompt inversion cancels guidance, and interpolates to a connected negative."""
import pytest
import torch
from palimpsest.inversion.negative_prompt import slerp
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert

import tiny
from contracting import family, invert, replay
from node_execution import executor  # noqa: F401
from runs import relative


@pytest.mark.parametrize("name", tiny.UNETS)
def test_the_negative_prompt_inversion_cancels_guidance(name):
    """Embedding and, on SDXL, the pooled vector: replay at CFG 7.5 equals replay at CFG 1."""
    model = family(name, 0.2)
    inversion = invert(PalimpsestNegativePromptInvert, model, 0.0, batch=2, source=tiny.cond(batch=2))
    plain = invert(PalimpsestDDIMInvert, model, batch=2, source=tiny.cond(batch=2))
    expected = replay(model, plain, prompt=tiny.cond(batch=2))
    assert relative(replay(model, inversion, 7.5, prompt=tiny.cond(batch=2)), expected) < 1e-4
    assert relative(replay(model, plain, 7.5, prompt=tiny.cond(batch=2)), expected) > 0.05
    assert inversion.provenance["evaluations"] == plain.provenance["evaluations"]
    assert [t.tensor.shape[:2] for t in inversion.theta.values()] == [(1, 2), (1, 2)]  # no copies per step


def test_a_learned_pooled_embedding_serves_an_inpaint_model():
    """The prompt's other conditions need the latent's size too."""
    model = tiny.sdxl(in_channels=9)
    model.model.set_inpaint()
    inversion, plain = (invert(node, model, *more)
                        for node, more in ((PalimpsestNegativePromptInvert, [0.0]), (PalimpsestDDIMInvert, [])))
    assert relative(replay(model, inversion, 7.5), replay(model, plain)) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_interpolation_ends_at_the_connected_negative(name):
    model = family(name, 0.2)
    inversion = invert(PalimpsestNegativePromptInvert, model, 1.0, negative=tiny.cond(seed=9))
    plain = invert(PalimpsestDDIMInvert, model)
    expected = replay(model, plain, 4.0, tiny.cond(seed=9))
    torch.testing.assert_close(replay(model, inversion, 4.0, tiny.cond(seed=2)), expected, rtol=1e-4, atol=1e-4)
    halfway = invert(PalimpsestNegativePromptInvert, model, 0.5, negative=tiny.cond(seed=9))
    assert relative(replay(model, halfway, 4.0), expected) > 1e-3
    with pytest.raises(ValueError, match="interpolation of 0.5 and no negative"):
        invert(PalimpsestNegativePromptInvert, model, 0.5)
    with pytest.raises(ValueError, match="96 wide, the source's 64: .*interpolation to 0"):
        invert(PalimpsestNegativePromptInvert, model, 0.5, negative=[[torch.zeros(1, 8, 96), tiny.cond()[0][1]]])


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_interpolation_repeats_prompts_of_unequal_length_as_the_host_does(weight):
    """With a null prompt of 6 tokens and a source of 8, each embedding is repeated to 24 tokens,
    which is the same attention."""
    model, null = family("sd15", 1.0), tiny.cond(tokens=6, seed=9)
    found = invert(PalimpsestNegativePromptInvert, model, weight, negative=null)
    source, learned = tiny.cond()[0][0], found.theta["uncond"].tensor
    torch.testing.assert_close(learned[0], slerp(weight, source.repeat(1, 3, 1), null[0][0].repeat(1, 4, 1)))
    if weight == 1:
        plain = invert(PalimpsestDDIMInvert, model)
        torch.testing.assert_close(replay(model, found, 4.0), replay(model, plain, 4.0, null), rtol=1e-4, atol=1e-4)


def test_slerp_walks_the_sphere_at_constant_speed():
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    third = torch.tensor(torch.pi / 6)
    torch.testing.assert_close(slerp(1 / 3, a, b)[0], torch.stack([third.cos(), third.sin()]))
    assert torch.equal(slerp(1 / 3, a[1:], b[1:]), a[1:])  # equal embeddings have no angle
