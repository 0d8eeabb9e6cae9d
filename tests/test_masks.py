"""Masks from predictions: DiffEdit against diffusers and against its equation, and Noise Mask on the real host."""
from types import SimpleNamespace

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline
from palimpsest.bench import twin
from palimpsest.blending.diffedit import difference_map, scaled
from palimpsest.blending.noise_mask import relevance
from palimpsest.host.sampling import Solver
from palimpsest.host.unet import host_attention, positions
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite
from palimpsest.nodes.blending.diffedit import PalimpsestDiffEditMask
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask

import tiny
from runs import Case, kept, relative
from watching import assert_close

ALL = {**tiny.UNETS, **tiny.FLOWS}


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@kept
def model_of(family):
    return ALL[family]()


def diffedit(model, source=None, target=None, latent=None, maps=10, strength=0.5, threshold=0.5, clamp=3.0, seed=0, batch=1):
    latent = {"samples": tiny.latent(model, batch) if latent is None else latent}
    return PalimpsestDiffEditMask.execute(model, source or tiny.cond(), target or tiny.cond(seed=4), latent, maps, strength,
                                          threshold, clamp, seed).result[0]


def diffusers_map(model, latent, prompts, monkeypatch, **settings):
    """(map before the threshold, mask), both [1, h, w], of diffusers' pipeline; the map is what it clamps, spied upon."""
    texts = twin.Prompts({text: conditioning[0][0] for text, conditioning in prompts.items()})
    pipeline = StableDiffusionDiffEditPipeline(
        vae=None, text_encoder=texts, tokenizer=texts, unet=twin.unet(model), safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**twin.SCHEDULE, clip_sample=False), inverse_scheduler=DDIMInverseScheduler(**twin.SCHEDULE),
        requires_safety_checker=False)
    pipeline.vae = SimpleNamespace(dtype=torch.float32)  # is asked for nothing else
    clamped, clamp = [], torch.Tensor.clamp

    def spy(tensor, *limits):
        clamped.append(clamp(tensor, *limits) / limits[-1])
        return clamp(tensor, *limits)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clamp", spy)
        mask = pipeline.generate_mask(model.model.process_latent_in(latent), "target", source_prompt="source", **settings)
    return clamped[-1], torch.from_numpy(mask).float()


@pytest.mark.parametrize("cfg, maps, clamp", [(7.5, 10, 2.0), (2.0, 3, 3.0)])
def test_diffedit_equals_diffusers(cfg, maps, clamp, monkeypatch):
    """On equal weights and noise at its timestep 481; whatever its guidance, which the scaling cancels (at CFG 1 it fails)."""
    model = model_of("sd15")
    prompts = {"": tiny.cond(seed=9), "source": tiny.cond(), "target": tiny.cond(seed=4)}
    latent, strength = tiny.latent(model), 481 / 999
    theirs, mask = diffusers_map(model, latent, prompts, monkeypatch, guidance_scale=cfg, num_maps_per_mask=maps,
                                 mask_thresholding_ratio=clamp, generator=torch.Generator().manual_seed(5))
    ours = scaled(difference_map(model, prompts["source"], prompts["target"], latent, maps, strength, 5), clamp)
    assert relative(ours, theirs) < 1e-5
    if clamp == 2.0:
        assert 0 < mask.mean() < 1
        assert torch.equal(diffedit(model, latent=latent, strength=strength, clamp=clamp, seed=5), mask)


@pytest.mark.parametrize("family", ALL)
def test_the_map_is_the_mean_difference_of_predicted_noise(family):
    """Of every kind of model, pictures, noises and channels told apart; each prediction by itself at CFG 1."""
    model, maps = model_of(family), 3
    sampling, latent = model.get_model_object("model_sampling"), tiny.latent(model, 2)
    sigma = torch.tensor(float(sampling.percent_to_sigma(0.4)))
    x = model.model.process_latent_in(latent)
    noise = torch.randn(maps, *latent.shape, generator=torch.Generator().manual_seed(7))
    flow = family in tiny.FLOWS
    keep = 1 - sigma if flow else torch.ones(())
    total = torch.zeros(2, *latent.shape[-2:])
    for n in range(maps):
        for row in range(2):
            noised = keep * x[row:row + 1] + sigma * noise[n, row:row + 1]
            eps = [(noised - keep * predicted(model, c, noised, sigma)) / sigma for c in (tiny.cond(), tiny.cond(seed=4))]
            for channel in (eps[1] - eps[0])[0].flatten(0, -3):
                total[row] += channel.abs() / maps
    found = difference_map(model, tiny.cond(), tiny.cond(seed=4), latent, maps, 0.6, 7)
    for ours, explicit in zip(scaled(found), total):
        expected = explicit / (3 * explicit.mean())
        torch.testing.assert_close(ours, expected.clamp(max=1), rtol=1e-3, atol=1e-4)
    assert relative(found[0] / found[0].mean(), found[1] / found[1].mean()) > 0.01


def predicted(model, conditioning, x, sigma):
    """x0 in sampler space, by the host's guider at CFG 1."""
    found = []

    def look(denoise, start, sigmas, extra_args, callback, disable):
        found.append(denoise(x, sigma.expand(len(x)), **extra_args))
        return start

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    guider.sample(torch.zeros_like(x), torch.ones_like(x), Solver(look), torch.stack([sigma, 0 * sigma]), disable_pbar=True)
    return found[0]


def test_every_widget_of_diffedit_acts_and_pictures_are_apart():
    model, base = model_of("sd15"), {"threshold": 0.3}
    first = diffedit(model, **base)
    for changed in ({"maps": 3}, {"strength": 0.9}, {"threshold": 0.4}, {"clamp": 4.0}, {"seed": 1},
                    {"source": tiny.cond(seed=6)}, {"target": tiny.cond(seed=6)}, {"latent": tiny.latent(model, seed=8)}):
        assert not torch.equal(diffedit(model, **{**base, **changed}), first), changed
    assert torch.equal(diffedit(model, **base), first) and first.shape == (1, 8, 8) and set(first.unique().tolist()) == {0.0, 1.0}
    assert diffedit(model, batch=11, maps=2, **base).shape == (11, 8, 8)  # more pictures than a forward holds


def test_diffedit_refuses_what_has_no_mask():
    model = model_of("sd15")
    with pytest.raises(ValueError, match="same prompt"):
        diffedit(model, target=tiny.cond())
    with pytest.raises(ValueError, match="threshold 1 .*empty: lower"):
        diffedit(model, threshold=1.0)
    with pytest.raises(ValueError, match="LATENT is empty"):
        diffedit(model, latent=torch.zeros(1, 4, 8, 8))
    case = Case(steps=2)
    edited = PalimpsestNoiseMask.execute(case.model, case.inversion, "source", 0.0, 1.0, 0.5).result[0]
    with pytest.raises(ValueError, match="DiffEdit Mask.*1 edit"):
        diffedit(edited, case.source, case.target)


def test_relevance_is_clamped_scaled_and_zero_without_a_difference():
    d = torch.zeros(2, 3, 1, 4, 5)
    values = torch.arange(20.0)
    values[19] = 500
    d[0, 0], d[0, 2] = values.view(4, 5) / 3, -values.view(4, 5) * 2 / 3
    ordered = values.sort().values
    low, high = (torch.lerp(ordered[int(q)], ordered[int(q) + 1], q - int(q)) for q in (0.25 * 19, 0.75 * 19))
    limit = high + 1.5 * (high - low)
    torch.testing.assert_close(relevance(d)[0], (values.clamp(max=limit) / limit).view(4, 5))
    assert limit < 30 and not relevance(d)[1].any()


def noise_mask(case, model=None, against="source", start=0.0, end=1.0, threshold=0.5):
    return PalimpsestNoiseMask.execute(model or case.model, case.inversion, against, start, end, threshold).result[0]


@kept
def case(family="sd15", **kwargs):
    return Case(family, **kwargs)


def record(case, edit, **kwargs):
    """Of every call of a run of edit(MODEL): σ, the network's x, its x0 of every list, and the sampler's x0."""
    calls = []

    def sampler(executor, *args):
        got = executor(*args)
        calls[-1].append(got.clone())
        return got

    def network(executor, inner, conds, x, timestep, options):
        x0s = executor(inner, conds, x, timestep, options)
        calls.append([float(timestep[0]), x.clone(), [x0.clone() for x0 in x0s]])
        return x0s

    model = case.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sampler", sampler)
    model = edit(model)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "network", network)
    case.sample(model, **kwargs)
    return [call for call in calls if len(call) == 4]  # the others read a source


@pytest.mark.parametrize("family, against, cfg", [
    *((f, "source", 7.5) for f in tiny.UNETS), ("sd15", "null", 7.5), ("sd15", "source", 1.0), ("sd15", "null", 1.0)])
def test_each_step_finds_its_mask_and_keeps_the_source_outside_it(family, against, cfg):
    """Outside, bit for bit: the network sees the inversion's latent from the step after, the sampler gets its clean one."""
    c = case(family)
    limit = c.model.get_model_object("model_sampling").percent_to_sigma(0.3)
    before, shares = None, []
    for sigma, seen, x0s, got in record(c, lambda m: noise_mask(c, m, against, start=0.3), cfg=cfg):
        if sigma > limit:
            continue
        other = x0s[1] if against == "null" and cfg > 1 else x0s[-1]
        mask = relevance(x0s[0] - other)[0] >= 0.5
        assert len(x0s) == (2 if against == "null" and cfg > 1 else 3)
        assert torch.equal(got[..., ~mask], c.inversion.latents[-1][..., ~mask])
        assert not torch.isclose(got[..., mask], c.inversion.latents[-1][..., mask]).all()
        if before is not None:
            assert torch.equal(seen[..., ~before], c.inversion.at(sigma)[..., ~before])
        shares.append(float(mask.float().mean()))
        before = mask
    assert len(shares) >= 3 and 0 < min(shares) and max(shares) < 1


def test_the_other_prediction_is_the_other_prompts():
    """A source in place of the null prompt gives the same masks, and so the same run, to rounding."""
    c = case()
    a = c.sample(noise_mask(c, against="null"), negative=c.source, cfg=3.0)
    torch.testing.assert_close(c.sample(noise_mask(c, against="source"), negative=c.source, cfg=3.0), a, rtol=1e-4, atol=1e-4)
    assert relative(c.sample(noise_mask(c, against="null"), cfg=3.0), a) > 1e-3


def test_a_mask_read_once_stays():
    c = case()
    calls = record(c, lambda m: noise_mask(c, m, start=0.3, end=0.3))
    asked = [len(x0s) for _, _, x0s, _ in calls]
    assert asked.count(3) == 1 and 1 < asked.index(3) + 1 < len(asked)  # the source's row is spared at the other steps
    held = [got[0, 0] == c.inversion.latents[-1][0, 0] for _, _, _, got in calls[asked.index(3):]]
    assert 0 < held[0].float().mean() < 1 and all(torch.equal(h, held[0]) for h in held)


def test_every_widget_of_the_noise_mask_acts():
    c = case()
    base = c.sample(noise_mask(c, end=0.9))
    for changed in ({"against": "null"}, {"start": 0.5}, {"end": 0.4}, {"threshold": 0.3}):
        assert relative(c.sample(noise_mask(c, **{"end": 0.9, **changed})), base) > 1e-4, changed
    assert torch.equal(c.sample(noise_mask(c, end=0.9)), base)


def test_rows_have_masks_of_their_own():
    c = case(source=("a red cat on a mat", "a black dog on a mat"), targets=("a blue cat on a mat", "a black pig on a mat"),
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


@kept
def scene(seed, kind):
    """A held-out edit on the miniature: the edit, MODEL, LATENT, source and target CONDITIONING."""
    edit = held_out_edit(seed, kind)
    model, clip, vae = load_miniature()
    latent = vae.encode(torch.from_numpy(edit.source_image)[None])
    return (edit, model, latent, *(tiny.encode(clip, t) for t in (edit.source_text, edit.target_text)))


def overlap(mask, edit):
    """Intersection over union with the true edit mask, at the latent's size."""
    true = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(edit.mask)[None], mask.shape[-2:]) > 0
    return float(((mask > 0) & true).sum() / ((mask > 0) | true).sum())


def composite(case, reference, mask, model=None, margin=1, attention_end=0.4, blend_end=0.8, seed=0):
    return PalimpsestInjectComposite.execute(model or case.model, case.inversion, reference.inversion, mask, margin,
                                             attention_end, blend_end, seed).result[0]


def center(size=8):
    """A mask of 4² cells in the middle, in pixels; and which cells are within n of them."""
    mask = torch.zeros(1, 8 * size, 8 * size)
    mask[:, 16:48, 16:48] = 1
    near = [torch.zeros(size, size, dtype=torch.bool) for _ in range(2)]
    for n, cells in enumerate(near):
        cells[2 - n:6 + n, 2 - n:6 + n] = True
    return mask, near


@kept
def donor(family="sd15"):
    c = case(family)
    return Case(family, source="a black dog on a mat", latent=tiny.latent(c.model, seed=21))


@pytest.mark.parametrize("family", tiny.UNETS)
def test_the_composed_field_has_each_pictures_queries_and_keys(family):
    """As attention's own function receives them, until 0.4: the reference's in the object, the main picture's outside the
    margin."""
    c, other, (mask, near) = case(family), donor(family), center()
    model, seen = composite(c, other, mask), []
    for position in positions(c.model.model.diffusion_model):
        def look(q, k, v, options, position=position):
            seen.append((float(options["sigmas"][0]), position, options["uuids"], options["activations_shape"][-2:], q, k))
            return host_attention(q, k, v, options)
        model.set_model_attn1_replace(look, *position)
    targets = []
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "uuid", lambda executor, x, *args: targets.append(
        executor.class_obj.conds["positive"][0]["uuid"]) or executor(x, *args))
    c.sample(model, cfg=1.0)
    limit, compared = c.model.get_model_object("model_sampling").percent_to_sigma(0.4), 0
    for sigma, position, uuids, grid, q, k in (s for s in seen if targets[0] in s[2] and s[0] >= limit):
        read = [s for s in seen if s[:2] == (sigma, position) and targets[0] not in s[2]]
        assert len(read) == 2 and read[0][2] != read[1][2]
        inside, band = (torch.nn.functional.adaptive_avg_pool2d(n[None].float(), grid).flatten() >= 0.5 for n in near)
        for mine, (theirs, main) in ((q, (read[0][4], read[1][4])), (k, (read[0][5], read[1][5]))):
            assert torch.equal(mine[:, inside], theirs[:, inside]) and torch.equal(mine[:, ~band], main[:, ~band])
            assert not torch.equal(main[:, inside], theirs[:, inside])
        compared += 1
    assert compared > 4
    assert all(len([s for s in seen if s[:2] == (sigma, position)]) == 1 for sigma, position, *_ in seen if sigma < limit)


def test_the_start_is_composed_of_both_noises_and_the_main_picture_held_until_its_end():
    """The second step goes on from the composed start, not from the sampler's own x."""
    c, other, (mask, near) = case(), donor(), center()
    calls = record(c, lambda m: composite(c, other, mask, m, blend_end=0.5), cfg=1.0)
    limit = c.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    sigma, x, _, _ = calls[0]
    assert torch.equal(x[..., near[0]], other.inversion.at(sigma)[..., near[0]])
    band = near[1] & ~near[0]
    assert not torch.isclose(x[..., band], c.inversion.at(sigma)[..., band]).any()
    assert abs(float(x[..., band].std()) / sigma - 1) < 0.3
    clean, following, _, _ = calls[1]
    assert_close(following[..., near[1]], (x + (clean - sigma) / sigma * (x - calls[0][2][0]))[..., near[1]])
    for sigma, x, _, got in calls:
        held = (torch.equal(x[..., ~near[1]], c.inversion.at(sigma)[..., ~near[1]]),
                torch.equal(got[..., ~near[1]], c.inversion.latents[-1][..., ~near[1]]))
        assert held == (sigma >= limit,) * 2
    assert calls[0][0] >= limit > calls[-1][0]


def test_every_input_of_inject_composite_acts_and_what_cannot_work_is_refused(caplog):
    c, other, (mask, _) = case(), donor(), center()
    first = c.sample(composite(c, other, mask))
    assert "other noise" not in caplog.text
    for changed in ({"margin": 2}, {"attention_end": 0.0}, {"blend_end": 0.3}, {"seed": 1}, {"mask": mask.roll(8, 1)},
                    {"reference": c}):
        assert relative(c.sample(composite(c, **{"reference": other, "mask": mask, **changed})), first) > 1e-4, changed
    assert torch.equal(c.sample(composite(c, other, mask)), first)
    with pytest.raises(ValueError, match="MASK of the object is empty"):
        composite(c, other, 0 * mask)
    with pytest.raises(ValueError, match=r"\[4, 8, 8\].*\[4, 16, 16\].*canvas"):
        composite(c, Case(size=16, steps=2), mask)
