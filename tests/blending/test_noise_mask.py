"""Noise Mask finds its mask at each step and keeps the source outside it."""
import comfy.samplers
import pytest
import torch
from palimpsest.blending.noise_mask import relevance
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask

import tiny
from flows import FRAMES, starts, velocity
from node_execution import executor  # noqa: F401
from recording import Flow, case, record
from runs import invert, relative


def test_relevance_is_clamped_scaled_and_zero_without_a_difference_but_rounding():
    d = torch.zeros(3, 3, 1, 4, 5, dtype=torch.float64)
    values = torch.arange(20.0)
    values[19] = 500
    d[0, 0], d[0, 2] = values.view(4, 5) / 3, -values.view(4, 5) * 2 / 3
    ordered = values.sort().values
    low, high = (torch.lerp(ordered[int(q)], ordered[int(q) + 1], q - int(q)) for q in (0.25 * 19, 0.75 * 19))
    limit = high + 1.5 * (high - low)
    d[2] = 2e-6 * d[0]
    found = relevance(300 + d, torch.full_like(d, 300))
    torch.testing.assert_close(found[0], (values.clamp(max=limit) / limit).view(4, 5))
    assert limit < 30 and not found[1:].any()


def noise_mask(case, model=None, against="source", start=0.0, end=1.0, threshold=0.5):
    return PalimpsestNoiseMask.execute(model or case.model, case.inversion, against, start, end, threshold).result[0]


@pytest.mark.parametrize("family, against, cfg", [
    *((f, "source", 7.5) for f in tiny.UNETS), ("sd15", "null", 7.5), ("sd15", "source", 1.0), ("sd15", "null", 1.0)])
def test_each_step_finds_its_mask_and_keeps_the_source_outside_it(family, against, cfg):
    """Outside the mask, bit for bit: the network sees the inversion's latent from the next step on, the
    sampler gets its clean latent."""
    c = case(family)
    limit = c.model.get_model_object("model_sampling").percent_to_sigma(0.3)
    before, shares = None, []
    for sigma, seen, x0s, got in record(c, lambda m: noise_mask(c, m, against, start=0.3), cfg=cfg):
        if sigma > limit:
            continue
        other = x0s[1] if against == "null" and cfg > 1 else x0s[-1]
        mask = relevance(x0s[0], other)[0] >= 0.5
        assert len(x0s) == (2 if against == "null" and cfg > 1 else 3)
        assert torch.equal(got[..., ~mask], c.inversion.latents[-1][..., ~mask])
        assert not torch.isclose(got[..., mask], c.inversion.latents[-1][..., mask]).all()
        if before is not None:
            assert torch.equal(seen[..., ~before], c.inversion.at(sigma)[..., ~before])
        shares.append(float(mask.float().mean()))
        before = mask
    assert len(shares) >= 3 and 0 < min(shares) and max(shares) < 1


@pytest.mark.parametrize("family, against", [("flux", "source"), ("sd3", "null")])
def test_a_run_on_a_flow_model_masks_by_the_difference_of_velocities(family, against):
    """On the host's network itself: each step's mask, and the source where it is 0."""
    c, cfg, mask = Flow(family), 4.0, None
    path, x = c.inversion.path, c.inversion.path[0]
    source, target, null = (velocity(c.model, prompt) for prompt in (c.source, c.target, c.null))
    for i, (n, s) in enumerate(zip(c.sigmas, c.sigmas[1:])):
        acts = float(n) <= starts(c.model, 0.3)
        seen = x if mask is None else torch.where(mask, x, path[i])
        v = null(seen, n) + cfg * (target(seen, n) - null(seen, n))
        x0 = seen - n * v
        if acts:
            r = (target(seen, n) - (source if against == "source" else null)(seen, n)).abs().sum(1)
            low, high = r.quantile(0.25), r.quantile(0.75)
            r = r.clamp(max=high + 1.5 * (high - low))
            mask = (r - r.min()) / (r.max() - r.min()) >= 0.5
            x0 = torch.where(mask, x0, path[-1])
        x = x + (s - n) * (x - x0) / n
    found, plain = (c.model.model.process_latent_in(c.sample(m, cfg=cfg))
                    for m in (noise_mask(c, against=against, start=0.3), c.model))
    assert relative(found, x) < 1e-5, relative(found, x)
    assert relative(plain, x) > 0.01 and 0 < mask.float().mean() < 1


def test_the_frames_of_a_video_share_a_mask():
    c = Flow("qwen")
    with torch.inference_mode():
        frames = torch.cat([tiny.latent(c.model, seed=seed) for seed in range(FRAMES)], 2)
        c.inversion, noise, c.sigmas = invert(c.model, c.source, frames, 3)
    c.noise = noise["samples"]
    found = c.model.model.process_latent_in(c.sample(noise_mask(c), cfg=4.0))
    held = torch.isclose(found, c.inversion.path[-1], rtol=1e-5, atol=1e-6).all(1)
    assert torch.equal(held, held[:, :1].expand(1, FRAMES, 8, 8)) and 0 < held.float().mean() < 1


def test_the_other_prediction_is_the_other_prompts():
    """A source in place of the null prompt gives the same masks and so the same run, within rounding."""
    c = case()
    a = c.sample(noise_mask(c, against="null"), negative=c.source, cfg=3.0)
    torch.testing.assert_close(c.sample(noise_mask(c, against="source"), negative=c.source, cfg=3.0), a, rtol=1e-4,
                               atol=1e-4)
    assert relative(c.sample(noise_mask(c, against="null"), cfg=3.0), a) > 1e-3


def test_a_mask_read_once_stays():
    c = case()
    calls = record(c, lambda m: noise_mask(c, m, start=0.3, end=0.3))
    asked = [len(x0s) for _, _, x0s, _ in calls]
    assert asked.count(3) == 1 and 1 < asked.index(3) + 1 < len(asked)  # the other steps need no source row
    held = [got[0, 0] == c.inversion.latents[-1][0, 0] for _, _, _, got in calls[asked.index(3):]]
    assert 0 < held[0].float().mean() < 1 and all(torch.equal(h, held[0]) for h in held)


def test_every_widget_of_the_noise_mask_acts():
    c = case()
    base = c.sample(noise_mask(c, end=0.9))
    for changed in ({"against": "null"}, {"start": 0.5}, {"end": 0.4}, {"threshold": 0.3}):
        assert relative(c.sample(noise_mask(c, **{"end": 0.9, **changed})), base) > 1e-4, changed
    assert torch.equal(c.sample(noise_mask(c, end=0.9)), base)


def test_rows_have_masks_of_their_own():
    c = case(source=("a red cat on a mat", "a black dog on a mat"),
             targets=("a blue cat on a mat", "a black pig on a mat"),
             batch=2)
    starts = c.noise + 0.2 * torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(8))
    whole = c.sample(noise_mask(c), latent=starts)
    swapped = torch.stack([starts[0], starts[0]])
    torch.testing.assert_close(c.sample(noise_mask(c), latent=swapped)[0], whole[0], rtol=1e-4, atol=1e-4)


def test_noise_mask_refuses_what_it_cannot_do():
    c = case()
    with pytest.raises(ValueError, match="threshold 0 lets every place"):
        noise_mask(c, threshold=0.0)
    guider = comfy.samplers.CFGGuider(noise_mask(c, against="null"))
    guider.inner_set_conds({"positive": c.target})
    with pytest.raises(ValueError, match="no negative"):
        c.sample(guider=guider)
