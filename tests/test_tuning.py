"""Inversions that learn how the target is sampled: prompt tuning, StyleDiffusion, KV inversion."""
import dataclasses
import math

import palimpsest.nodes.inversion.style_diffusion as style_diffusion_node
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.attention_loss import cross_attention_maps, with_maps_recorded
from palimpsest.host.unet import positions
from palimpsest.inversion import kv, prompt_tuning, style_diffusion
from palimpsest.inversion.pivotal_tuning import follow
from palimpsest.inversion.storage import load, save
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.kv import PalimpsestKVInvert
from palimpsest.nodes.inversion.prompt_tuning import PalimpsestPromptTuningInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.inversion.storage import KNOWN
from palimpsest.nodes.inversion.style_diffusion import PalimpsestStyleDiffusionInvert

import tiny
from runs import Case, cancelled_in, relative

CFG, STEPS = 7.5, 4
EVERY = {**tiny.UNETS, **tiny.FLOWS}
NULL, OTHER = tiny.cond(seed=9), tiny.cond(seed=4)


def tuned_prompt(model, inversion, iterations=6, tolerance=0.0, negative=NULL, mix=0.0, target=None):
    with torch.inference_mode():
        return PalimpsestPromptTuningInvert.execute(model, inversion, negative, CFG, iterations, tolerance, mix, target).result[0]


def style(model, inversion, iterations=6, tolerance=0.0, negative=NULL, regularise=1.0, end=0.5):
    with torch.inference_mode():
        return PalimpsestStyleDiffusionInvert.execute(model, inversion, negative, CFG, iterations, tolerance, regularise,
                                                      end).result[0]


def contents(model, inversion, iterations=6, tolerance=0.0, negative=NULL, layers=""):
    with torch.inference_mode():
        return PalimpsestKVInvert.execute(model, inversion, negative, CFG, iterations, tolerance, layers).result[0]


LEARN = {"prompt": tuned_prompt, "style": style, "contents": contents}
each = pytest.mark.parametrize("name", LEARN)
everywhere = pytest.mark.parametrize("name, family", [(n, f) for n in LEARN for f in (EVERY if n == "prompt" else tiny.UNETS)])


def inverted(model, steps=STEPS, batch=1):
    with torch.inference_mode():
        picture = {"samples": model.model.process_latent_out(tiny.latent(model, batch))}
        return PalimpsestDDIMInvert.execute(model, tiny.cond(), picture, steps, "ddim_uniform").result[0]


def replay(model, inversion, prompt=None, cfg=CFG, after=lambda model: model):
    with torch.inference_mode():
        m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
        found = SamplerCustom.execute(after(m), False, 5, cfg, prompt or tiny.cond(), NULL, solver, sigmas, latent)
        return model.model.process_latent_in(found.result[0]["samples"])


@everywhere
def test_no_step_ends_worse_than_it_began_and_replay_comes_nearer(name, family):
    model = EVERY[family]()
    inversion = inverted(model)
    learned = LEARN[name](model, inversion)
    losses = learned.provenance["losses"]
    assert len(losses) == STEPS and all(last <= first for first, last, _ in losses) and losses[0][1] < losses[0][0]
    clean = inversion.latents[-1]
    assert relative(replay(model, learned), clean) < 0.9 * relative(replay(model, inversion), clean)
    assert learned.provenance["trajectory"] == "DDIM"


@each
def test_nothing_stays_in_the_model(name):
    model = tiny.sd15()
    inversion = inverted(model)
    weights = {n: id(p) for n, p in model.model.named_parameters()}
    before, options = replay(model, inversion), repr(model.model_options)
    replay(model, LEARN[name](model, inversion, 1))
    assert torch.equal(replay(model, inversion), before) and repr(model.model_options) == options
    assert {n: id(p) for n, p in model.model.named_parameters()} == weights


@each
def test_a_cancelled_run_stops_at_the_next_update_and_leaves_nothing(name):
    model = tiny.sd15()
    inversion = inverted(model)
    before = replay(model, inversion)
    assert cancelled_in(4, model, lambda: LEARN[name](model, inversion)) == 4
    assert torch.equal(replay(model, inversion), before)


@each
def test_equal_inputs_give_equal_bytes_and_a_file_returns_them(name, tmp_path):
    model = tiny.sdxl()
    inversion = inverted(model, batch=2)
    learned, again = (LEARN[name](model, inversion, 2) for _ in range(2))
    with torch.inference_mode():
        save(tmp_path / "x", learned, KNOWN)
        loaded = load(tmp_path / "x", KNOWN)
    for other in (again, loaded):
        assert other.theta.keys() == learned.theta.keys()
        assert all(torch.equal(theta.tensor, other.theta[n].tensor) for n, theta in learned.theta.items())
    assert torch.equal(replay(model, loaded), replay(model, learned))


@each
def test_pictures_learn_by_themselves(name):
    """The first of two pictures in a batch as it is alone; one update, since more of them amplify rounding."""
    model = tiny.sd15()
    learned = LEARN[name](model, inverted(model, batch=2), 1)
    first = LEARN[name](model, inverted(model), 1)
    assert relative(replay(model, learned)[:1], replay(model, first)) < 1e-3


SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.3, 0.0])


def linear():
    """x0 = mean over the tokens · A + x/2, linear in an embedding or in an offset from it, and a pivot that it does not
    follow."""
    generator = torch.Generator().manual_seed(1)
    a, start = torch.randn(6, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    path = [torch.randn(2, 6, generator=generator) * (1 + float(s)) for s in SIGMAS]

    def model(x, sigma, c=start[:1] / 2):
        return c.expand(len(x), -1, -1).mean(1) @ a + x / 2

    return model, start, path


def lands(model, path, conds):
    """The paper's guided Euler steps from the pivot's start reach it at every level."""
    x = path[0]
    for i, cond in enumerate(conds):
        denoised = (1 - CFG) * model(x, None) + CFG * cond(x)
        x = x + (SIGMAS[i + 1] - SIGMAS[i]) / SIGMAS[i] * (x - denoised)
        assert relative(x, path[i + 1]) < 1e-4


SETTINGS = {"cfg": CFG, "iterations": 60, "tolerance": 1e-11, "disable": True}


def test_a_tuned_prompt_solves_every_step_where_the_network_can():
    model, start, path = linear()
    theta, losses = prompt_tuning.optimise(model, model, path, SIGMAS, start, **SETTINGS)
    assert theta.tensor.shape == (4, 2, 3, 6) and all(first > 1e-3 for first, _, _ in losses)
    lands(model, path, [lambda x, c=c: model(x, None, c) for c in theta.tensor])


def test_values_solve_every_step_where_the_maps_stay():
    """The map is what the first token's values become here: with no loss on it the steps are solved as a prompt's are, with λ
    the loss is the trajectory's and λ times the map's, and other tokens carry what is learned."""
    model, start, path = linear()

    def cond(x, sigma, scale, shift):
        values = start if shift is None else start * scale + shift
        return model(x, sigma, values), [values[:, None, :1]]

    theta, _ = style_diffusion.optimise(model, cond, path, SIGMAS, start.shape, regularise=0.0, **{**SETTINGS, "iterations": 600})
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
    """K·e^(-0.1·i), rounded up, in 30 steps, and the same over the schedule in 15."""
    def predict(x, sigma, pivot):
        return lambda theta: (theta, theta.new_ones(1))  # so that no step is ever near enough

    for steps, each in ((30, 1), (15, 2)):
        sigmas = torch.linspace(8, 0, steps + 1)
        path = [torch.zeros(1, 6)] * (steps + 1)
        _, history = follow(predict, path, sigmas, torch.zeros(1, 6), iterations=7, decay=style_diffusion.DECAY, tolerance=0.0,
                            disable=True)
        assert [updates for *_, updates in history] == [math.ceil(7 * math.exp(-0.1 * i * each)) for i in range(steps)]


def test_maps_are_the_softmax_of_each_head_and_their_loss_a_sum_of_means():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    maps = cross_attention_maps(q, k, 2)
    for row in range(2):
        for head, part in enumerate((slice(0, 4), slice(4, 8))):
            assert torch.allclose(maps[row, head], torch.softmax(q[row, :, part] @ k[row, :, part].T / 2, -1), atol=1e-6)
    other = cross_attention_maps(q + 1, k, 2)
    found = style_diffusion.distance([maps, maps, maps], [maps, other, other])
    assert torch.allclose(found, 2 * (maps - other).square().mean((1, 2, 3)))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_maps_are_those_of_both_sides_of_the_unet_and_not_of_its_middle(family, monkeypatch):
    seen = set()
    monkeypatch.setattr(style_diffusion_node, "with_maps_recorded", lambda options, sites, found: seen.update(sites) or with_maps_recorded(options, sites, found))
    model = tiny.UNETS[family]()
    style(model, inverted(model), 1)
    at = positions(model.model.diffusion_model)
    assert seen == {p for p, share in at.items() if share == 0.5 and p[0] != "middle"}
    assert {p[0] for p in seen} == {"input", "output"}


def test_contents_solve_every_step_where_the_network_can():
    model, start, path = linear()
    shapes = {"a": (2, 2, 3), "b": (2, 3, 1)}

    def cond(x, sigma, deltas):
        return model(x, sigma, deltas["a"].flatten(2) + torch.cat([deltas["b"].flatten(2)] * 2, 2))

    theta, _ = kv.optimise(model, cond, path, SIGMAS, shapes, **SETTINGS)
    assert {name: tuple(t.tensor.shape) for name, t in theta.items()} == {"a": (4, 2, 2, 2, 3), "b": (4, 2, 2, 3, 1)}
    assert all(t.tensor.dtype == torch.float16 for t in theta.values())
    x = path[0]
    for i in range(4):
        held = {name: t.tensor[i].float() for name, t in theta.items()}
        denoised = (1 - CFG) * model(x, None) + CFG * cond(x, None, held)
        x = x + (SIGMAS[i + 1] - SIGMAS[i]) / SIGMAS[i] * (x - denoised)
        assert relative(x, path[i + 1]) < 5e-3  # what is kept has half precision


def read_by(model, inversion, prompt, kind):
    """What attention's projections read, of every forward of a replay: [{(section, block, depth): {"q", "k", "v"}}], rows
    of the target first."""
    network, forwards, hooks = model.model.diffusion_model, [], []
    sections = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    for place in positions(network):
        block = next(m for m in sections[place[0]][place[1]] if hasattr(m, "transformer_blocks")).transformer_blocks[place[2]]
        for name in "qkv":
            layer = getattr(getattr(block, kind), f"to_{name}")
            hooks.append(layer.register_forward_pre_hook(
                lambda m, args, place=place, name=name: forwards[-1].setdefault(place, {}).update({name: args[0].clone()})))
    hooks.append(network.register_forward_pre_hook(lambda m, args: forwards.append({})))
    replay(model, inversion, prompt)
    for hook in hooks:
        hook.remove()
    assert len(forwards) == STEPS
    return forwards


PLAIN = {"value_scale": 1.0, "value": 0.0}


@pytest.mark.parametrize("family, older", [("sd15", False), ("sd15", True), ("sd2", False), ("sdxl", False)])
def test_only_the_values_of_the_target_read_what_was_learned_for_them(family, older, tmp_path):
    """The source prompt at every step, another until the end; keys, and the null prompt, never. Older files hold no scale."""
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


@pytest.mark.parametrize("family", tiny.UNETS)
def test_only_chosen_layers_of_the_target_read_what_was_learned_for_them(family):
    model = tiny.UNETS[family]()
    learned = contents(model, inverted(model), 2)
    names = {"content." + ".".join(map(str, place)): place for place in positions(model.model.diffusion_model)}
    assert 0 < len(learned.theta) < len(names) and learned.theta.keys() < names.keys()
    for i, forward in enumerate(read_by(model, learned, OTHER, "attn1")):
        for name, place in names.items():
            at = forward[place]
            added = [at[n] - at["q"] for n in "kv"]
            rows = [r for r in range(2) if any(a[r].any() for a in added)]
            if name not in learned.theta:
                assert not rows
                continue
            assert len(rows) == 1
            for found, given in zip(added, learned.theta[name].tensor[i, 0].float()):
                assert torch.allclose(found[rows[0]], given, atol=1e-5)


@pytest.mark.parametrize("name", ["style", "contents"])
def test_attention_inject_before_or_after_replay_is_the_same(name):
    case = Case(steps=STEPS)
    learned = LEARN[name](case.model, case.inversion, 2, negative=case.null)

    def inject(model):
        return PalimpsestAttentionInject.execute(model, learned, case.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 0.5, "", "").result[0]

    def through(*steps):
        model = case.model
        for step in steps:
            model = step(model)
        return case.sample(model)

    def applied(model):
        return PalimpsestReplay.execute(model, learned, 0.0).result[0]

    both = through(inject, applied)
    assert torch.equal(both, through(applied, inject))
    with pytest.raises(ValueError, match="put Replay Inversion on this MODEL"):
        through(inject)
    assert relative(both, through(applied)) > 1e-3


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_the_target_is_sampled_with_eq_9(family):
    """Replay with a target equals Euler steps, at the same CFG, of embeddings mixed here; the pooled ones are mixed alike."""
    model, mix = EVERY[family](), 0.3
    learned = tuned_prompt(model, inverted(model), 2, mix=mix)
    x = learned.latents[0]
    for i, sigma in enumerate(learned.sigmas[:-1]):
        c = torch.lerp(learned.theta["cond"].tensor[i], OTHER[0][0], mix)
        pooled = torch.lerp(learned.theta["cond_pooled"].tensor[0], OTHER[0][1]["pooled_output"], mix)
        with torch.inference_mode():
            m, solver, _, _ = PalimpsestReplay.execute(model, inverted(model), 0.0).result
            latent = {"samples": model.model.process_latent_out(x)}
            prompt = [[c, {"pooled_output": pooled}]]
            found = SamplerCustom.execute(m, False, 5, CFG, prompt, NULL, solver, learned.sigmas[i:i + 2], latent)
            x = model.model.process_latent_in(found.result[0]["samples"])
    assert relative(replay(model, learned, OTHER), x) < 1e-5
    assert relative(replay(model, learned), x) > 1e-3


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_each_row_is_mixed_with_its_own_target(family):
    """Two targets on four rows of two pictures; on SDXL their pooled embeddings too."""
    model = EVERY[family]()
    learned = tuned_prompt(model, inverted(model, batch=2), 1, mix=0.5)
    targets = tiny.cond(seed=4, batch=2)
    both = replay(model, learned, targets)
    for row in range(2):
        alone = [[targets[0][0][row:row + 1], {"pooled_output": targets[0][1]["pooled_output"][row:row + 1]}]]
        assert relative(replay(model, learned, alone)[row], both[row]) < 1e-5
        assert relative(replay(model, learned, alone)[1 - row], both[1 - row]) > 1e-4


@each
def test_another_negative_prompt_is_said_once_a_run(name, said):
    model = tiny.sd15()
    inversion = inverted(model)
    learned, other = (LEARN[name](model, inversion, 1, negative=negative) for negative in (NULL, OTHER))
    replay(model, learned)
    assert not said()
    for _ in range(2):
        replay(model, other)
        assert ["made with another negative prompt" in text for text in said()] == [True]


def test_an_inversion_without_guidance_that_is_sampled_with_it_says_so_once_a_run(said):
    model = tiny.sd15()
    inversion = inverted(model)
    replay(model, inversion, cfg=1.0)
    replay(model, inversion, OTHER, after=lambda m: PalimpsestLatentBlend.execute(
        m, inversion, 0.0, "", "", 0.3, torch.ones(1, 64, 64)).result[0])
    assert not said()
    for _ in range(2):
        replay(model, inversion)
        assert ["made at CFG 1 and is sampled at 7.5" in text for text in said()] == [True]


def test_without_a_share_of_the_target_any_prompt_returns_the_picture():
    model = tiny.sdxl()
    learned = tuned_prompt(model, inverted(model), 2, mix=0.0)
    assert torch.equal(replay(model, learned, OTHER), replay(model, learned))


def test_a_prompt_tuned_from_the_target_begins_as_the_target():
    model = tiny.sd15()
    inversion = inverted(model)
    learned = tuned_prompt(model, inversion, 1, tolerance=1e9, target=OTHER)
    assert torch.equal(learned.theta["cond"].tensor, OTHER[0][0].expand(STEPS, -1, -1, -1))


def test_refuses_what_it_cannot_use():
    model = tiny.sd15()
    inversion = inverted(model)
    with pytest.raises(ValueError, match="has 2 entries, one is needed"):
        tuned_prompt(model, inversion, target=OTHER + NULL)
    with pytest.raises(ValueError, match="1 pictures, the CONDITIONING 2 prompts"):
        tuned_prompt(model, inversion, target=tiny.cond(batch=2))
    learned = tuned_prompt(model, inversion, 1, mix=0.5)
    with pytest.raises(ValueError, match="The target has 16 tokens, the Prompt Tuning INVERSION learned 8"):
        replay(model, learned, tiny.cond(tokens=16))
    with pytest.raises(ValueError, match="The target has 16 tokens, the StyleDiffusion INVERSION learned 8"):
        replay(model, style(model, inversion, 1), tiny.cond(tokens=16))
    learned = contents(model, inversion, 1)
    area = [[OTHER[0][0], {**OTHER[0][1], "area": (4, 4, 0, 0), "strength": 1.0}]]
    with pytest.raises(ValueError, match="the target has an area"):
        replay(model, learned, area)
    with pytest.raises(ValueError, match="names a layer that this MODEL does not have"):
        contents(model, inversion, layers="u9")
    flux = tiny.flux()
    for learn in (style, contents):
        with pytest.raises(ValueError, match="U-Nets"):
            learn(flux, inverted(flux))
