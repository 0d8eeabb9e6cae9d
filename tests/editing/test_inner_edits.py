"""Editors that ask attention with keys, rows or channels of their own, and others inside them."""
import pytest
import torch
from comfy.model_sampling import EDM, ModelSamplingContinuousEDM
from palimpsest.attention.style_aligned import weighed
from palimpsest.editing.inverting import invert
from palimpsest.host.sampling import Solver
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.guidance.attend_excite import PalimpsestAttendExcite
from palimpsest.nodes.guidance.nmg import PalimpsestNoiseMapGuidance

import nodes
from cases import case_of
from editors import EDITORS, STEPS
from editors.case import quarter
from explicit import apply_maps, attention, features, softmax_maps
from runs import Case, relative

INSIDE = ["swap", "free prompt", "plug and play", "composite", "mixing", "cross image"]
DARK = "a red cat", "a black dog"


def masked(c, model=None, masks=None):
    masks = quarter(c) if masks is None else masks
    return PalimpsestMutualSelfAttention.execute(model or c.model, c.inversion, 0.0, 1.0, "", "", "", 0.1, False,
                                                 masks, masks).result[0]


@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("other", INSIDE)
def test_masks_of_mutual_self_attention_go_with_editors_of_self_attention_in_either_order(other, family):
    c = case_of(family=family, steps=STEPS)
    first, second = c.sample(masked(c, EDITORS[other](c))), c.sample(EDITORS[other](c, masked(c)))
    assert torch.equal(first, second) and first.isfinite().all()
    assert relative(first, c.sample(EDITORS[other](c))) > 1e-3


@pytest.mark.parametrize("other", ["mutual", "cross image"])
def test_a_mask_for_each_row_leaves_the_rows_apart(other):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, 64, 64)
    masks[0, :, :32], masks[1, :, 16:] = 1, 1
    cases = [Case("sd15", DARK, ("a blue cat", "a black pig"), latent=latents[[0, i]], steps=STEPS) for i in (1, 2)]
    a, b = (c.sample(masked(c, EDITORS[other](c), masks)) for c in cases)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_two_masks_for_each_row_are_refused():
    c = Case("sd15", DARK, ("a blue cat", "a black pig"), batch=2, steps=STEPS)
    masks = torch.cat([quarter(c), quarter(c).flip(2)])
    with pytest.raises(ValueError, match="is given 1 of 2 rows by another that has a mask for each row.*give one mask"):
        c.sample(masked(c, masked(c, None, masks), masks))


def test_where_mid_step_features_keep_all_cells_a_mask_is_refused():
    c = case_of(family="flux", steps=STEPS)
    with pytest.raises(ValueError, match="keeps where all 16 cells look.*shows it [0-9]+ of them: leave that mask out"):
        c.sample(masked(c, EDITORS["mid-step words"](c)))


@pytest.mark.parametrize("family", ["sd15", "flux", "sd3"])
@pytest.mark.parametrize("other", ["swap", "extended attention", "style aligned"])
def test_style_aligned_goes_with_others_in_either_order(other, family):
    c = case_of(family=family, steps=STEPS)
    style = EDITORS["style aligned"]
    for model in (style(c, EDITORS[other](c)), EDITORS[other](c, style(c))):
        found = c.sample(model)
        assert found.isfinite().all() and relative(found, c.sample(EDITORS[other](c))) > 1e-3


@pytest.mark.parametrize("beside", [0, 3])
def test_weights_of_keys_are_the_biases_of_their_scores(beside):
    """Keys that the attention has beside them count once."""
    (q, k, v), (_, k_r, v_r), (_, k_w, v_w) = (features(2, seed) for seed in range(3))
    keys, values, own = torch.cat([k, k_r], 1), torch.cat([v, v_r], 1), k.shape[1]

    def joined(q, k, v):
        return attention(q, torch.cat([k_w[:, :beside], k], 1), torch.cat([v_w[:, :beside], v], 1))

    got = weighed(q, keys, values, own, torch.tensor([0.7, -2.0]).exp(), joined)
    for row, shift in enumerate((0.7, -2.0)):
        bias = torch.cat([torch.zeros(beside + own), torch.full((k_r.shape[1],), shift)])
        q_, k_, v_ = (x[row:row + 1] for x in (q, torch.cat([k_w[:, :beside], keys], 1),
                                               torch.cat([v_w[:, :beside], values], 1)))
        assert relative(got[row:row + 1], apply_maps(softmax_maps(q_, k_, bias), v_)) < 1e-5


def inject(c, model=None, weights="", cross_end=0.8):
    return PalimpsestAttentionInject.execute(model or c.model, c.inversion, c.edit, 0.0, cross_end, 0.0, 0.0, 1.0, 0.5,
                                             weights, "").result[0]


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_of_two_injects_on_the_same_words_the_last_one_counts(family, caplog):
    """Each moves the target's words to the source's places, which a refinement shifts."""
    c = case_of(family=family, source="a cat on a mat", targets=("a red cat on a mat",), steps=STEPS)
    once = c.sample(inject(c))
    assert "the last of the chain counts" not in caplog.text
    assert torch.equal(c.sample(inject(c, inject(c))), once) and "the last of the chain counts" in caplog.text
    weak = c.sample(inject(c, None, "red: 3"))
    assert torch.equal(c.sample(inject(c, inject(c), "red: 3")), weak) and relative(weak, once) > 1e-3
    assert relative(c.sample(inject(c, inject(c, cross_end=0.4), "red: 3", 0.4)), once) > 1e-3


class Sampling(ModelSamplingContinuousEDM, EDM):
    """Levels that scale with σ_data, and the same times of the network."""

    def timestep(self, sigma):
        return 0.25 * (sigma / self.sigma_data).log()

    def sigma(self, timestep):
        return (timestep / 0.25).exp() * self.sigma_data


@pytest.mark.parametrize("edit", [
    lambda model, inversion: PalimpsestNoiseMapGuidance.execute(model, inversion, 0.005).result[0],
    lambda model, inversion: PalimpsestAttendExcite.execute(model, "cat", 20.0, 0.5, "0: 0.05", 20, 0.25).result[0]],
    ids=["noise map", "excite"])
def test_a_latent_of_half_the_deviation_is_moved_half_as_far(edit):
    """EDM models have a σ_data of 0.5: with latent and levels halved too nothing else changes."""
    c, found, plain = case_of(steps=STEPS), [], None
    levels = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.0])
    for data in (1.0, 0.5):
        model, sampling = c.model.clone(), Sampling(c.model.model.model_config)
        sampling.set_parameters(0.02 * data, 20.0 * data, data)
        model.add_object_patch("model_sampling", sampling)
        with torch.inference_mode():
            inversion, noise, sigmas = invert("DDIM", model, c.source, {"samples": c.latent * data},
                                              sigmas=levels * data)
            at = {"latent": noise["samples"], "sigmas": sigmas, "sampler": Solver()}
            plain = c.sample(model, **at) / data
            found.append(c.sample(edit(model, inversion), **at) / data)
    assert relative(found[1], found[0]) < 1e-5 and relative(found[0], plain) > 1e-2


@pytest.mark.parametrize("editor", ["dreammatcher", "remove"])
def test_a_prompt_that_is_cut_in_time_is_one(editor):
    c, cut = case_of(steps=8), nodes.ConditioningSetTimestepRange.set_range
    model = EDITORS[editor](c)
    halves = [entry for span in ((0.0, 0.4), (0.4, 1.0)) for entry in cut(None, c.target, *span)[0]]
    assert torch.equal(c.sample(model, positive=halves), c.sample(model))
