"""StyleDiffusion's values, maps and updates, and which projections read what was learned."""
import dataclasses
import math

import pytest
import torch
from palimpsest.editing import network
from palimpsest.editing.attention_loss import cross_attention_maps, with_maps_recorded
from palimpsest.host.unet import resolutions
from palimpsest.inversion import style_diffusion
from palimpsest.inversion.pivotal_tuning import follow
from palimpsest.inversion.storage import load, save
from palimpsest.nodes.inversion.storage import KNOWN

import tiny
from learning import CFG, NULL, OTHER, SETTINGS, SIGMAS, inverted, lands, linear, read_by, style


def test_values_solve_every_step_where_the_maps_stay():
    """Here the map is the first token's values. Without a loss on the map the steps are solved as for a prompt. With λ
    the loss is the trajectory's plus λ times the map's, and other tokens carry what is learned."""
    model, start, path = linear()

    def cond(x, sigma, scale, shift):
        values = start if shift is None else start * scale + shift
        return model(x, sigma, values), [values[:, None, :1]]

    theta, _ = style_diffusion.optimise(model, cond, path, SIGMAS, start.shape, regularise=0.0,
                                        **{**SETTINGS, "iterations": 600})
    scales, shifts = theta["value_scale"].tensor, theta["value"].tensor
    assert scales.shape == shifts.shape == (4, 2, 3, 6) and (scales - 1).norm() > 0.1 < shifts.norm()
    lands(model, path, [lambda x, s=s, b=b: model(x, None, start * s + b) for s, b in zip(scales, shifts)])
    theta, losses = style_diffusion.optimise(model, cond, path, SIGMAS, start.shape, regularise=2.0,
                                             **{**SETTINGS, "iterations": 200, "tolerance": 0.0})

    values = start * theta["value_scale"].tensor[0] + theta["value"].tensor[0]
    denoised = (1 - CFG) * model(path[0], None) + CFG * model(path[0], None, values)
    x = path[0] + (SIGMAS[1] - SIGMAS[0]) / SIGMAS[0] * (path[0] - denoised)
    moved = values - start
    loss = ((x - path[1]) / (1 + SIGMAS[1] ** 2).sqrt()).square().mean(1) + 2.0 * moved[:, 0].square().mean(1)
    assert float(loss.max()) == pytest.approx(losses[0][1], rel=1e-4)
    assert losses[0][1] < losses[0][0] and moved[:, 0].norm() < 0.5 * moved[:, 1].norm()


def test_updates_of_a_step_fade_as_the_authors_do():
    """K·e^(-0.1·i), rounded up, in 30 steps. In 15 steps the same over the schedule."""
    def predict(x, sigma, pivot):
        return lambda theta: (theta, theta.new_ones(1))  # so no step is ever close enough

    for steps, each in ((30, 1), (15, 2)):
        sigmas = torch.linspace(8, 0, steps + 1)
        path = [torch.zeros(1, 6)] * (steps + 1)
        _, history = follow(predict, path, sigmas, torch.zeros(1, 6), iterations=7, decay=style_diffusion.DECAY,
                            tolerance=0.0,
                            disable=True)
        assert [updates for *_, updates in history] == [math.ceil(7 * math.exp(-0.1 * i * each)) for i in range(steps)]


def test_maps_are_the_softmax_of_each_head_and_their_loss_a_sum_of_means():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    maps = cross_attention_maps(q, k, 2)
    for row in range(2):
        for head, part in enumerate((slice(0, 4), slice(4, 8))):
            assert torch.allclose(maps[row, head], torch.softmax(q[row, :, part] @ k[row, :, part].T / 2, -1),
                                  atol=1e-6)
    other = cross_attention_maps(q + 1, k, 2)
    found = style_diffusion.distance([maps, maps, maps], [maps, other, other])
    assert torch.allclose(found, 2 * (maps - other).square().mean((1, 2, 3)))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_maps_are_those_of_both_sides_of_the_unet_and_not_of_its_middle(family, monkeypatch):
    seen = set()
    monkeypatch.setattr(network, "with_maps_recorded",
                        lambda options, sites, found: seen.update(sites) or with_maps_recorded(options, sites, found))
    model = tiny.UNETS[family]()
    style(model, inverted(model), 1)
    at = resolutions(model.model.diffusion_model)
    assert seen == {p for p, share in at.items() if share == 0.5 and p[0] != "middle"}
    assert {p[0] for p in seen} == {"input", "output"}


PLAIN = {"value_scale": 1.0, "value": 0.0}


@pytest.mark.parametrize("family, older", [("sd15", False), ("sd15", True), ("sd2", False), ("sdxl", False)])
def test_only_the_values_of_the_target_read_what_was_learned_for_them(family, older, tmp_path):
    """The source prompt at every step, another prompt until the end, keys and the null prompt never.
    Older files hold no scale."""
    model = tiny.UNETS[family]()
    learned = style(model, inverted(model), 2, end=0.5)
    assert (learned.theta["value_scale"].tensor != 1).any()
    if older:
        kept = {n: t for n, t in learned.theta.items() if n != "value_scale"}
        save(tmp_path / "x", dataclasses.replace(learned, theta=kept), KNOWN)
        learned = load(tmp_path / "x", KNOWN)
    limit = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    for prompt in (tiny.cond(), OTHER):
        text = prompt[0][0]
        for i, forward in enumerate(read_by(model, learned, prompt, "attn2")):
            given = prompt is not OTHER or learned.sigmas[i] >= limit
            scale, shift = (learned.theta[n].tensor[i] if given and n in learned.theta else d for n, d in PLAIN.items())
            for at in forward.values():
                mine = [torch.equal(row, text[0]) for row in at["k"]]
                assert sorted(mine) == [False, True]
                target, null = mine.index(True), mine.index(False)
                assert torch.equal(at["k"][null], NULL[0][0][0]) and torch.equal(at["v"][null], NULL[0][0][0])
                assert torch.equal(at["v"][target:target + 1], text * scale + shift)
