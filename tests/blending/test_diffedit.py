"""DiffEdit's mask against diffusers and against its equation."""
from types import SimpleNamespace

import comfy.samplers
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline
from palimpsest.bench import twin
from palimpsest.blending.diffedit import EVEN, difference_map, mask, scaled, spread
from palimpsest.host.sampling import Solver
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.blending.diffedit import PalimpsestDiffEditMask
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask

import control_nets
import tiny
from cases import case_of
from flows import FRAMES
from node_execution import executor  # noqa: F401
from runs import Case, kept, relative

ALL = {**tiny.UNETS, **tiny.FLOWS}


@kept
def model_of(family):
    return ALL[family]()


def diffedit(model, source=None, target=None, latent=None, maps=10, strength=0.5, threshold=0.5, clamp=3.0, seed=0,
             batch=1, rule="paper", told=0):
    latent = {"samples": tiny.latent(model, batch) if latent is None else latent}
    return PalimpsestDiffEditMask.execute(model, source or tiny.cond(), target or tiny.cond(seed=4), latent, maps,
                                          strength,
                                          threshold, clamp, seed, rule).result[told]


def diffusers_map(model, latent, prompts, monkeypatch, **settings):
    """(map before the threshold, mask) of diffusers' pipeline, both [1, h, w]. The map is captured
    where the pipeline clamps it."""
    texts = twin.Prompts({text: conditioning[0][0] for text, conditioning in prompts.items()})
    pipeline = StableDiffusionDiffEditPipeline(
        vae=None, text_encoder=texts, tokenizer=texts, unet=twin.unet(model), safety_checker=None,
        feature_extractor=None,
        scheduler=DDIMScheduler(**twin.SCHEDULE, clip_sample=False),
        inverse_scheduler=DDIMInverseScheduler(**twin.SCHEDULE),
        requires_safety_checker=False)
    pipeline.vae = SimpleNamespace(dtype=torch.float32)  # is never used
    clamped, clamp = [], torch.Tensor.clamp

    def spy(tensor, *limits):
        clamped.append(clamp(tensor, *limits) / limits[-1])
        return clamp(tensor, *limits)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clamp", spy)
        mask = pipeline.generate_mask(model.model.process_latent_in(latent), "target", source_prompt="source",
                                      **settings)
    return clamped[-1], torch.from_numpy(mask).float()


@pytest.mark.parametrize("cfg, maps, clamp", [(7.5, 10, 2.0), (2.0, 3, 3.0)])
def test_diffedit_equals_diffusers(cfg, maps, clamp, monkeypatch):
    """On equal weights and noise at its timestep 481. Guidance makes no difference, because the scaling
    cancels it (at CFG 1 it fails)."""
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
    """On every kind of model, with several pictures, noises and channels. Each prediction is
    compared alone at CFG 1."""
    model, maps = model_of(family), 3
    sampling, latent = model.get_model_object("model_sampling"), tiny.latent(model, 2)
    if latent.ndim == 5:
        latent = torch.cat([tiny.latent(model, 2, seed=seed) for seed in range(FRAMES)], 2)  # a video
    sigma = torch.tensor(float(sampling.percent_to_sigma(0.4)))
    x = model.model.process_latent_in(latent)
    noise = torch.randn(maps, *latent.shape, generator=torch.Generator().manual_seed(7))
    flow = family in tiny.FLOWS
    keep = 1 - sigma if flow else torch.ones(())
    total = torch.zeros(2, *latent.shape[-2:])
    for n in range(maps):
        for row in range(2):
            noised = keep * x[row:row + 1] + sigma * noise[n, row:row + 1]
            eps = [(noised - keep * predicted(model, c, noised, sigma)) / sigma
                   for c in (tiny.cond(), tiny.cond(seed=4))]
            for channel in (eps[1] - eps[0])[0].flatten(0, -3):
                total[row] += channel.abs() / maps
    found = difference_map(model, tiny.cond(), tiny.cond(seed=4), latent, maps, 0.6, 7)
    for ours, explicit in zip(scaled(found), total):
        expected = explicit / (3 * explicit.mean())
        torch.testing.assert_close(ours, expected.clamp(max=1), rtol=1e-3, atol=1e-4)
    assert relative(found[0] / found[0].mean(), found[1] / found[1].mean()) > 0.01


def predicted(model, conditioning, x, sigma):
    """x0 in sampler space, from the host's guider at CFG 1."""
    found = []

    def look(denoise, start, sigmas, extra_args, callback, disable):
        found.append(denoise(x, sigma.expand(len(x)), **extra_args))
        return start

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    guider.sample(torch.zeros_like(x), torch.ones_like(x), Solver(look), torch.stack([sigma, 0 * sigma]),
                  disable_pbar=True)
    return found[0]


@torch.inference_mode()
def test_a_controlnet_on_the_target_acts_on_both_prompts():
    """Whatever the source is under."""
    c = case_of()
    target, source = (control_nets.plainly(c, positive=positive)[0] for positive in (c.target, c.source))
    assert not difference_map(c.model, c.source, source, c.latent).any()
    found = difference_map(c.model, c.source, target, c.latent)
    assert torch.equal(found, difference_map(c.model, source, target, c.latent))
    assert relative(found, difference_map(c.model, c.source, c.target, c.latent)) > 1e-3
    with pytest.raises(ValueError, match="Source and target are the same prompt"):
        diffedit(c.model, c.source, source, c.latent)


def test_every_widget_of_diffedit_acts_and_pictures_are_apart():
    model, base = model_of("sd15"), {"threshold": 0.3}
    first = diffedit(model, **base)
    for changed in ({"maps": 3}, {"strength": 0.9}, {"threshold": 0.4}, {"clamp": 4.0}, {"seed": 1},
                    {"source": tiny.cond(seed=6)}, {"target": tiny.cond(seed=6)},
                    {"latent": tiny.latent(model, seed=8)}):
        assert not torch.equal(diffedit(model, **{**base, **changed}), first), changed
    assert torch.equal(diffedit(model, **base), first)
    assert first.shape == (1, 8, 8) and set(first.unique().tolist()) == {0.0, 1.0}
    assert diffedit(model, batch=11, maps=2, **base).shape == (11, 8, 8)  # more pictures than one forward holds


@pytest.mark.parametrize("threshold, clamp", [(0.5, 3.0), (0.3, 2.0)])
def test_an_even_map_passes_but_for_its_least_values_and_others_as_in_the_paper(threshold, clamp):
    """Each picture by its own map. The paper's rule lets at most two thirds of an even one pass."""
    part, even = 0.01 * torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) + torch.tensor(
        [0.001, 0.2]).view(-1, 1, 1)
    part[3:9, 3:9] = 1
    even[4:9, 4:9] = 0.04
    found = mask(torch.stack([part, even]), threshold, clamp, "auto")
    by_paper = mask(torch.stack([part, even]), threshold, clamp)
    assert torch.equal(by_paper, (scaled(torch.stack([part, even]), clamp) > threshold).float())
    assert torch.equal(found[0], by_paper[0]) and torch.equal(found[1], (even > 0.04).float())
    assert spread(part[None]) < EVEN < spread(even[None]) and spread(torch.ones(1, 8, 8)) == 1


def test_the_picture_is_seen_at_full_strength():
    """At the noisiest level that the model knows: the host's 0 % is far above it."""
    case = Case("sd15")
    latents = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    one, other = (difference_map(case.model, case.source, case.target, x, 2, 1.0) for x in latents)
    assert relative(one, other) > 1e-3 and float(one.max()) < 100


def test_the_rule_of_whole_pictures_says_what_it_found(caplog):
    caplog.set_level("INFO")
    model = model_of("sd15")
    assert diffedit(model, rule="auto").mean() > diffedit(model, threshold=0.4).mean()
    assert "the two prompts differ on the whole picture (spread" in caplog.text


def test_its_settings_are_what_it_said_of_each_picture_or_what_was_set(caplog):
    caplog.set_level("INFO")
    model = model_of("sd15")
    said = diffedit(model, rule="auto", batch=2, told=1).split("\n")
    assert len(said) == 2 and said == [text for text in caplog.messages if "auto" in text]
    assert diffedit(model, threshold=0.3, told=1) == "mask: threshold 0.3, clamp 3"


def test_a_picture_of_a_batch_whose_mask_is_empty_is_told_and_the_others_keep_theirs(caplog):
    model, least = model_of("sd15"), 0.3
    whole = diffedit(model, threshold=least, batch=2)
    while all(row.any() for row in whole):
        least += 0.02
        whole = diffedit(model, threshold=least, batch=2)
    (number,) = (i for i, row in enumerate(whole, 1) if not row.any())
    said = f"the mask of picture {number} of 2 is empty, so that nothing of it changes: lower threshold or clamp"
    assert caplog.messages == [f"DiffEdit Mask: {said}."]
    assert diffedit(model, threshold=least, batch=2, told=1).endswith(said)


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


@kept
def scene(seed, kind):
    """A held-out edit on the miniature: (the edit, MODEL, LATENT, source CONDITIONING, target CONDITIONING)."""
    edit = held_out_edit(seed, kind)
    model, clip, vae = load_miniature()
    latent = vae.encode(torch.from_numpy(edit.source_image)[None])
    return (edit, model, latent, *(tiny.encode(clip, t) for t in (edit.source_text, edit.target_text)))


def overlap(mask, edit):
    """Intersection over union with the true edit mask, in the latent's cells."""
    true = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(edit.mask)[None], mask.shape[-2:]) > 0
    return float(((mask > 0) & true).sum() / ((mask > 0) | true).sum())
