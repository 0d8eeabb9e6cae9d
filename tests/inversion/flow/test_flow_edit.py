"""FlowEdit against the authors' loop, its return on flow models, and editors beside it."""
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from palimpsest.editing.inverting import invert
from palimpsest.editing.masks import masks_of
from palimpsest.inversion.ddcm import missed
from palimpsest.inversion.flow import flow_edit
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

import tiny
from closed_form import denoiser, levels, network, noisy
from exact_inversions import NEGATIVE, picture, replay
from flows import FRAMES, velocity
from node_execution import executor  # noqa: F401
from runs import relative

HALF = (torch.arange(64) < 32).float().expand(1, 64, 64)  # the left one
AUTHORS = json.loads((Path(__file__).parents[2] / "data" / "flow_edit.json").read_text())


def prompted(prompt):
    """A flow model whose velocity is the closed-form network's under a prompt."""
    return lambda z, sigma: z - sigma.view(-1, 1, 1, 1) * network(z + prompt, sigma.view(-1, 1, 1, 1))


def guided(cfg, prompt):
    """A flow model whose velocity is the closed-form network's, guided by CFG from no prompt to a prompt."""
    def model(x, sigma):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        return x - s * (network(x, s) + cfg * (network(x + prompt, s) - network(x, s)))
    return model


def test_a_run_at_the_papers_guidance_passes_the_authors_latents():
    """Source and target at every level, of a picture of odd shape."""
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path, seen = flow_edit.noised_path(x, sigmas, 5, flow=True), []
    gaps = missed(guided(3.5, 0.3), path, sigmas, disable=True)
    found = flow_edit.denoise(guided(13.5, -0.6), path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas,
                              callback=lambda step: seen.append(step["x"]), disable=True)
    for i, (source, edited) in enumerate(AUTHORS["levels"]):
        assert float(path[i].flatten()[7]) == pytest.approx(source, abs=1e-6)
        assert float(seen[i].flatten()[7]) == pytest.approx(edited, abs=1e-6)
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(AUTHORS["edit"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert relative(found, x) > 0.1


@pytest.mark.parametrize("n_avg, n_min, edit", AUTHORS["averaged"])
def test_several_noises_and_last_plain_steps_are_the_authors(n_avg, n_min, edit):
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path = flow_edit.noised_path(x.repeat(n_avg, 1, 1, 1), sigmas, 5, flow=True)
    gaps = missed(guided(3.5, 0.3), path, sigmas, disable=True)
    found = flow_edit.denoise(guided(13.5, -0.6), path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas,
                              disable=True, noises=(n_avg, 1), plain=sigmas[-1 - n_min])
    assert found.shape == x.shape
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(edit, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_run_with_the_source_as_the_negative_is_flow_aligns():
    """Its latents are those of the authors' loop: guidance from the source's prompt, and 0.01 of the way back."""
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path = flow_edit.noised_path(x, sigmas, 5, flow=True)
    gaps = missed(prompted(0.3), path, sigmas, disable=True)

    def target(z, sigma):
        return prompted(0.3)(z, sigma) + 13.5 * (prompted(-0.6)(z, sigma) - prompted(0.3)(z, sigma))

    found = [flow_edit.denoise(target, path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas, disable=True,
                               align=align) for align in (0.01, 0.0)]
    torch.testing.assert_close(found[0].flatten()[:8], torch.tensor(AUTHORS["aligned"], dtype=torch.float64), rtol=1e-6,
                               atol=1e-6)
    assert relative(found[1], found[0]) > 1e-3


@pytest.mark.parametrize("frames", {1, FRAMES})
def test_latents_of_videos_are_moved_too(frames):
    """[B,C,T,h,w]: the source's prompt returns them, also drawn to the source, and another prompt moves every frame."""
    model = tiny.qwen(output=0.05)
    latent = {"samples": tiny.latent(model).repeat(1, 1, frames, 1, 1) * torch.linspace(1, 0.5, frames).view(-1, 1, 1)}
    inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, align=0.01).inversion
    assert relative(replay(model, inversion), latent["samples"]) < 1e-5
    moved = replay(model, inversion, prompt=tiny.cond(seed=4)) - latent["samples"]
    assert moved.shape == latent["samples"].shape and float(moved.abs().amax((0, 1, 3, 4)).min()) > 1e-5


def test_an_eps_models_edit_goes_along_the_difference_of_both_velocities():
    x, sigmas = noisy(2, 8), levels(9, False)
    path = flow_edit.noised_path(x, sigmas, 3)
    gaps = missed(denoiser(False), path, sigmas, disable=True)

    def target(x, sigma):
        return denoiser(False)(x + 0.3, sigma)

    edit = torch.zeros_like(x)
    for z, n, c in zip(path, sigmas, sigmas[1:]):
        velocities = [(at - m(at, n.expand(2))) / n for m, at in ((target, z + edit), (denoiser(False), z))]
        edit = edit + (c - n) * (velocities[0] - velocities[1])
    found = flow_edit.denoise(target, path[0], lambda i, _: path[i], lambda i, _: gaps[i], sigmas, disable=True)
    torch.testing.assert_close(found, x + edit, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [*tiny.FLOWS, "sd15"])
def test_the_source_prompt_at_its_guidance_returns_the_picture(family):
    model = {**tiny.FLOWS, **tiny.UNETS}[family](output=0.05)
    latent = picture(model, batch=2)
    inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, cfg=3.0, negative=tiny.cond(seed=NEGATIVE)).inversion
    assert relative(replay(model, inversion, 3.0), latent["samples"]) < 1e-5
    assert relative(replay(model, inversion, 3.0, prompt=tiny.cond(seed=4)), latent["samples"]) > 1e-4


def test_the_edits_of_a_levels_noises_are_averaged():
    """Of two pictures, in two copies. An editor reads the source at each noise's own latent: with the source's prompt
    the picture comes back."""
    model = tiny.flux(output=0.05)
    latent = picture(model, batch=2)
    inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, n_avg=3).inversion
    found = replay(model, inversion, prompt=TARGET, repeat=2)
    wanted = by_hand(inversion, velocity(model, tiny.cond()), velocity(model, TARGET), noises=3)[:2]
    assert len(found) == 4 and relative(model.model.process_latent_in(found), wanted.repeat(2, 1, 1, 1)) < 1e-5
    shared = PalimpsestMutualSelfAttention.execute(model, inversion, 0.0, 1.0, "", "", "", 0.1, True).result[0]
    assert relative(replay(shared, inversion), latent["samples"]) < 1e-5
    assert relative(found[:2], latent["samples"]) > 1e-4


@pytest.mark.parametrize("n_avg, rows", [(3, [6, 6, 6]), (16, [8, 8, 8, 8] * 3)])
def test_a_forward_holds_no_more_rows_with_several_noises(n_avg, rows):
    """Eight rows at most, whatever number of noises. One by one they give the same."""
    model = tiny.flux(output=0.05)
    latent, seen = picture(model, batch=2), []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda network, inputs: seen.append(len(inputs[0])))
    try:
        inversion = invert("FlowEdit", model, tiny.cond(), latent, 3, n_avg=n_avg).inversion
    finally:
        hook.remove()
    assert seen == rows
    x = model.model.process_latent_in(latent["samples"])
    found, one = inversion.theta["missed"].tensor, velocity(model, tiny.cond())
    for step, level in ((0, 0), (2, 2)):
        for row in (0, 3, 2 * n_avg - 1):
            z, sigma = inversion.path[level][row:row + 1], inversion.sigmas[level]
            wanted = x[row % 2] - (z - sigma * one(z, sigma))[0]
            assert relative(found[step][row], wanted) < 1e-5


def test_several_prompts_of_one_picture_are_refused_with_several_noises():
    """Row i has prompt i, and rows are noises: their mean would be of several edits."""
    model, ((text, extra), (other, others)) = tiny.flux(output=0.05), (tiny.cond(seed=n)[0] for n in (4, 5))
    pooled = torch.cat([extra["pooled_output"], others["pooled_output"]])
    two = [[torch.cat([text, other]), {**extra, "pooled_output": pooled}]]
    inversions = {batch: invert("FlowEdit", model, tiny.cond(), picture(model, batch=batch), 3, n_avg=2).inversion
                  for batch in (1, 2)}
    for repeat in (1, 2):
        with pytest.raises(ValueError, match="2 prompts, and 2 noises lead to each .* pictures .1., .*n_avg 1"):
            replay(model, inversions[1], prompt=two, repeat=repeat)
    both = replay(model, inversions[2], prompt=two)
    apart = [replay(model, inversions[2], prompt=tiny.cond(seed=n)) for n in (4, 5)]
    assert all(relative(both[n], apart[n][n]) < 1e-5 for n in (0, 1)) and relative(*apart) > 1e-4


@pytest.mark.parametrize("family", ["flux", "sd15"])
def test_the_last_steps_sample_the_target_alone(family):
    """Over all steps that is the target from the source's first noise, whatever part of the run is asked for."""
    model = {**tiny.FLOWS, **tiny.UNETS}[family](output=0.05)
    latent, found = picture(model), {}
    for steps in 0, 2, 4, 9:
        inversion = invert("FlowEdit", model, tiny.cond(), latent, 4, n_min=steps).inversion
        found[steps] = replay(model, inversion, prompt=TARGET)
        blended = PalimpsestLatentBlend.execute(model, inversion, 0.0, "", "", 0.0, HALF).result[0]
        kept = replay(blended, inversion, prompt=TARGET)[..., 4:]
        assert inversion.provenance["evaluations"] == max(4 - steps, 0)
        assert relative(kept, latent["samples"][..., 4:]) < 1e-5
    plain = dataclasses.replace(inversion, method="DDIM", theta={})
    assert relative(found[4], replay(model, plain, prompt=TARGET)) < 1e-5 and torch.equal(found[4], found[9])
    assert all(relative(found[n], found[4]) > 1e-4 for n in (0, 2))


OVERRIDE, TARGET = "optimized_attention_override", tiny.cond(seed=4)
each_kind = pytest.mark.parametrize("family, layers, frames", [("flux", "d, s", ()), ("qwen", "d", (FRAMES,))])


def source_of(family, frames):
    """(MODEL, the picture or video in model space, its FlowEdit INVERSION in three steps)."""
    model = tiny.FLOWS[family]()
    latent = torch.randn(1, 16, *frames, 8, 8, generator=torch.Generator().manual_seed(3))
    return model, latent, invert("FlowEdit", model, tiny.cond(), {"samples": latent}, 3, "simple").inversion


def by_hand(inversion, source, target, mask=1.0, noises=1):
    """The edit along the difference of velocities where the mask is 1, in sampler space."""
    edit = torch.zeros_like(inversion.path[-1])
    for i, (n, c) in enumerate(zip(inversion.sigmas, inversion.sigmas[1:])):
        before, z = source(inversion.path[i], n), inversion.path[i] + edit
        each = (target(z, n) - before).chunk(noises)
        edit = edit + mask * (c - n) * torch.cat([sum(each) / noises] * noises)
    return inversion.path[-1] + edit


@each_kind
def test_latent_blend_edits_within_its_mask_alone(family, layers, frames):
    model, latent, inversion = source_of(family, frames)
    blended = PalimpsestLatentBlend.execute(model, inversion, 0.0, "", "", 0.0, HALF).result[0]
    found = model.model.process_latent_in(replay(blended, inversion, prompt=TARGET))
    wanted = by_hand(inversion, velocity(model, tiny.cond()), velocity(model, TARGET), HALF[0, ::8, ::8])
    assert relative(found, wanted) < 1e-5
    assert relative(found[..., 4:], inversion.path[-1][..., 4:]) < 1e-6
    moved = (found - inversion.path[-1])[..., :4]
    assert float(moved.abs().flatten(-2).amax(-1).min()) > 1e-3  # in every channel and frame


@pytest.mark.skipif(FRAMES == 1, reason="this host's Qwen-Image knows pictures alone")
def test_a_mask_of_each_frame_edits_it_within_alone():
    """By Latent Blend as the edit along both velocities says, and by KV-Edit exactly outside."""
    model, latent, inversion = source_of("qwen", (FRAMES,))
    masks = torch.stack([HALF[0], 1 - HALF[0], torch.zeros(64, 64)])
    several = invert("FlowEdit", model, tiny.cond(), {"samples": latent}, 2, n_avg=2).inversion
    assert torch.equal(masks_of(masks, several), masks_of(masks, inversion)), "its noises are no pictures"
    own = [PalimpsestLatentBlend.execute(model, inversion, 0.0, "", "", 0.0, masks).result[0],
           PalimpsestFeatureShare.execute(model, inversion, "KV-Edit", "", "", 0.0, 0.0, *["as preset"] * 2, False,
                                          masks).result[0]]
    blended, shared = (model.model.process_latent_in(replay(edited, inversion, prompt=TARGET)) for edited in own)
    wanted = by_hand(inversion, velocity(model, tiny.cond()), velocity(model, TARGET), masks[:, ::8, ::8])
    assert relative(blended, wanted) < 1e-5
    for found in blended, shared:
        moved = (found - inversion.path[-1]).abs().amax((0, 1))
        assert float(moved[masks[:, ::8, ::8] == 0].max()) < 1e-6 < float(moved[masks[:, ::8, ::8] == 1].min())


@each_kind
def test_an_attention_editor_reads_the_source_at_flow_edits_own_latents(family, layers, frames):
    """The target's picture looks up the keys and values of the source noised alike, after its eight words."""
    model, latent, inversion = source_of(family, frames)
    known = []

    def note(func, q, k, v, *args, **kwargs):
        known.append((k, v))
        return func(q, k, v, *args, **kwargs)

    def share(func, q, k, v, *args, **kwargs):
        axis = 2 if kwargs.get("skip_reshape") else 1
        own = [torch.cat([mine.narrow(axis, 0, 8), theirs.narrow(axis, 8, theirs.shape[axis] - 8)], axis)
               for mine, theirs in zip((k, v), known.pop(0))]
        return torch.cat([func(q, k, v, *args, **kwargs)[:, :8], func(q, *own, *args, **kwargs)[:, 8:]], 1)

    edited = PalimpsestMutualSelfAttention.execute(model, inversion, 0.0, 1.0, layers, "", "", 0.1, True).result[0]
    found = model.model.process_latent_in(replay(edited, inversion, prompt=TARGET))
    wanted = by_hand(inversion, velocity(model, tiny.cond(), **{OVERRIDE: note}),
                     velocity(model, TARGET, **{OVERRIDE: share}))
    assert not known and relative(found, wanted) < 1e-5
    assert relative(model.model.process_latent_in(replay(model, inversion, prompt=TARGET)), wanted) > 1e-4
