"""Feature Share against whole runs of four authors' code, its presets on Flux's schedule, and what it refuses."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.attention.feature_share import PRESETS
from palimpsest.editing.inverting import invert
from palimpsest.editing.layers import parse_layers
from palimpsest.editing.replay import replay
from palimpsest.host.sampling import schedule
from palimpsest.inversion.method import methods
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare

import tiny
from node_execution import executor  # noqa: F401
from runs import kept, percent, relative

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "feature_share.json").read_text())
SIGMAS = torch.tensor(AUTHORS["sigmas"])
MASK = torch.zeros(1, 64, 64)
MASK[:, 8:40, 16:] = 1  # cuts through tokens of 16 pixels


@kept
def flux(singles=2):
    return tiny.flux(depth_single_blocks=singles)


def prompt(seed, guidance=1.0, tokens=8):
    (embedding, extra), = tiny.cond(tokens, seed=seed)
    return [[embedding, {**extra, "guidance": guidance}]]


def share(model, inversion, preset, features="", layers="", start=0.0, end=0.0, tokens="as preset", level="as preset",
          mask=None):
    return PalimpsestFeatureShare.execute(model, inversion, preset, features, layers, start, end, tokens, level, True,
                                          mask).result[0]


def sampled(model, inversion, target, latent=None, **settings):
    """In sampler space, by the inversion's own steps from its noise or a latent of another level."""
    edited, solver, sigmas, start = replay(model, inversion)
    edited = share(edited, inversion, **settings) if settings else edited
    start = start if latent is None else {"samples": model.model.process_latent_out(latent)}
    found = SamplerCustom.execute(edited, False, 0, 1.0, target, target, solver, sigmas, start).result[0]["samples"]
    return model.model.process_latent_in(found)


# method, its settings, single blocks, words, the node's settings, and the level where the last share ends
RUNS = {
    "rf_edit": ("RF-Solver", {}, 22, 8, {"preset": "RF-Edit", "layers": "s20-21"}, 0.5),
    "fireflow": ("FireFlow", {}, 2, 8, {"preset": "FireFlow", "start": 0.01}, 0.8),
    "added": ("FireFlow", {}, 2, 8, {"preset": "FireFlow", "start": 0.01, "features": "+q, v"}, 0.8),
    "kv_edit": ("RF-Inversion", {"gamma": 0.0}, 2, 512, {"preset": "KV-Edit", "mask": MASK}, 0),
    "flow_edit": ("FlowEdit", {"seed": 5}, 2, 512, {"preset": "KV-Edit", "mask": MASK}, 0)}


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run_gives_the_authors_numbers(name):
    """Their KV-Edit begins at the noisiest level with the latent of the one before."""
    method, how, singles, words, settings, last = RUNS[name]
    model, guidance = flux(singles), AUTHORS["guidance"][name]
    source, target = prompt(1, guidance[0], words), prompt(4, guidance[1], words)
    inversion = invert(method, model, source, {"samples": tiny.latent(model)}, sigmas=SIGMAS, **how).inversion
    start = inversion.path[1] if name == "kv_edit" else None
    found = sampled(model, inversion, target, start, end=percent(model, last) if last else 0.0, **settings)
    theirs = torch.tensor(AUTHORS[name])
    torch.testing.assert_close(found[0, 0, 2:4, 2:6].flatten(), theirs, rtol=0, atol=1e-4)
    if "mask" in settings:
        outside = MASK[0, ::8, ::8] == 0
        assert relative(found[..., outside], inversion.path[-1][..., outside]) < 1e-6


@pytest.mark.parametrize("name", ["stable_flow", "stable_flow_level"])
def test_a_whole_run_of_stable_flow_gives_the_authors_numbers(name):
    """Their source's row holds the cleanest of the noisy latents in the second step and then those of two steps before.
    With its list put right it has each level's own, as an INVERSION has."""
    model, guidance = tiny.flux(mlp_ratio=4.0), AUTHORS["guidance"]["stable_flow"]
    source, target = prompt(1, guidance[0], 512), prompt(4, guidance[1], 512)
    sigmas = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    inversion = invert("DDIM", model, source, {"samples": tiny.latent(model)}, sigmas=sigmas).inversion
    held = [0, 3, 0, 1, 4] if name == "stable_flow" else range(5)
    source = replace(inversion, latents=tuple(inversion.latents[i] for i in held))
    _, solver, sigmas, start = replay(model, inversion)
    edited = share(model, source, "Stable Flow", layers="d0, s1")
    found = SamplerCustom.execute(edited, False, 0, 1.0, target, target, solver, sigmas, start).result[0]["samples"]
    found = model.model.process_latent_in(found)
    torch.testing.assert_close(found[0, 0, 2:4, 2:6].flatten(), torch.tensor(AUTHORS[name]), rtol=0, atol=1e-5)
    assert relative(found, sampled(model, inversion, target)) > 1e-2


@pytest.mark.parametrize("preset, steps, shared", [
    ("RF-Edit", 25, range(10)), ("FireFlow", 8, [1]), ("Stable Flow", 28, range(56)), ("KV-Edit", 28, range(56))])
def test_a_preset_acts_at_its_authors_levels_of_fluxs_schedule(preset, steps, shared):
    """RF-Edit in five whole steps, FireFlow in the first middle alone."""
    own, model = PRESETS[preset], flux()
    first, last = (float(model.get_model_object("model_sampling").percent_to_sigma(p)) for p in (own.start, own.end))
    levels = methods()["RF-Solver"].levels(schedule(model, "simple", steps))[:-1].tolist()
    assert [i for i, sigma in enumerate(levels) if first >= sigma >= last] == list(shared)


def test_presets_have_their_authors_layers_of_flux():
    network = tiny.flux(depth=19, depth_single_blocks=38).model.diffusion_model
    named = {name: preset.layers(network) for name, preset in PRESETS.items()}
    assert named == {"RF-Edit": parse_layers("s20-37", network), "FireFlow": parse_layers("s", network),
                     "Stable Flow": {("double", i, 0) for i in (0, 1, 17, 18)} | {
                         ("single", i - 19, 0) for i in (28, 53, 54, 56, 25)},
                     "KV-Edit": parse_layers("d, s", network)}


def test_the_level_below_is_where_a_step_of_the_inversion_began():
    model = flux()
    for method, expected in {"DDIM": [0.75, 0.875, 0.4, 0.0], "RF-Solver": [0.75, 0.875, 0.4, 0.0],
                             "FlowEdit": [1.0, 0.875, 0.75, 0.4]}.items():
        inversion = invert(method, model, tiny.cond(), {"samples": tiny.latent(model)}, sigmas=SIGMAS).inversion
        found = [methods()[method].lower(inversion, sigma) for sigma in (1.0, 0.875, 0.75, 0.4)]
        assert found == pytest.approx(expected, abs=1e-6)


def test_words_of_another_number_keep_the_targets_features(caplog):
    model = flux()
    inversion = invert("DDIM", model, prompt(1, tokens=5), {"samples": tiny.latent(model)}, sigmas=SIGMAS).inversion
    both, own = (sampled(model, inversion, prompt(4), preset="RF-Edit", layers="s", end=1.0, tokens=tokens)
                 for tokens in ("all", "picture"))
    assert torch.equal(both, own)
    assert caplog.text.count("the source has 5 tokens beside the picture's and the target 8") == 1


def test_the_sources_own_prompt_changes_nothing():
    """What is shared is then the target's own, and added it is twice that."""
    model, source = flux(), prompt(1)
    inversion = invert("DDIM", model, source, {"samples": tiny.latent(model)}, sigmas=torch.tensor([0.8, 0])).inversion
    plain, shared, added = (sampled(model, inversion, source, **settings) for settings in (
        {}, {"preset": "FireFlow", "end": 1.0}, {"preset": "FireFlow", "end": 1.0, "features": "+v"}))
    assert relative(shared, plain) < 1e-6 < 1e-3 < relative(added, plain)


@pytest.mark.parametrize("settings, message", [
    ({"preset": "RF-Edit", "start": 0.2}, "start of 0.2 and an end of 0, .* set end too .RF-Edit: 0.19"),
    ({"preset": "RF-Edit", "start": 0.4, "end": 0.2}, "runs from 0.4 to 0.2 of the schedule"),
    ({"preset": "KV-Edit"}, "KV-Edit keeps the picture outside a mask, .* connect a MASK"),
    ({"preset": "KV-Edit", "mask": torch.zeros(1, 8, 8)},
     "is 0 everywhere, so nothing .* may change: paint where .* or turn it round"),
    ({"preset": "RF-Edit", "mask": torch.zeros(1, 8, 8)}, "is 0 everywhere, .* paint where .* or disconnect the mask"),
    ({"preset": "Stable Flow"}, "found on Flux .d0-1, .* this MODEL has d0-1 .1/2., s0-1 .1/2.: name"),
    ({"preset": "FireFlow", "features": "v, +v"}, "features is 'v, .v', but can name each .* write 'v'"),
    ({"preset": "FireFlow", "features": "w"}, "features is 'w'")])
def test_what_cannot_work_is_refused(settings, message, said):
    model = flux()
    inversion = invert("DDIM", model, prompt(1), {"samples": tiny.latent(model)}, sigmas=SIGMAS[-2:]).inversion
    said()
    with pytest.raises(ValueError, match=message):
        share(model, inversion, **settings)
    assert not said()
