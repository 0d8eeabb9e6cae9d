"""Prompt tuning reaches the pivot, and the target is sampled as in the paper's equation."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.inversion import prompt_tuning
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from learning import CFG, EVERY, NULL, OTHER, SETTINGS, SIGMAS, STEPS, inverted, lands, linear, replay, tuned_prompt
from runs import relative


def test_a_tuned_prompt_solves_every_step_where_the_network_can():
    model, start, path = linear()
    theta, losses = prompt_tuning.optimise(model, model, path, SIGMAS, start, **SETTINGS)
    assert theta.tensor.shape == (4, 2, 3, 6) and all(first > 1e-3 for first, _, _ in losses)
    lands(model, path, [lambda x, c=c: model(x, None, c) for c in theta.tensor])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_the_target_is_sampled_with_eq_9(family):
    """Replay with a target equals Euler steps at the same CFG with embeddings that are mixed here. Pooled embeddings
    are mixed in the same way."""
    model, mix = EVERY[family](), 0.3
    learned = tuned_prompt(model, inverted(model), 2, mix=mix)
    x = learned.latents[0]
    for i in range(len(learned.sigmas) - 1):
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
    """Two targets on four rows of two pictures. On SDXL also their pooled embeddings."""
    model = EVERY[family]()
    learned = tuned_prompt(model, inverted(model, batch=2), 1, mix=0.5)
    targets = tiny.cond(seed=4, batch=2)
    both = replay(model, learned, targets)
    for row in range(2):
        alone = [[targets[0][0][row:row + 1], {"pooled_output": targets[0][1]["pooled_output"][row:row + 1]}]]
        assert relative(replay(model, learned, alone)[row], both[row]) < 1e-5
        assert relative(replay(model, learned, alone)[1 - row], both[1 - row]) > 1e-4


def test_without_a_share_of_the_target_any_prompt_returns_the_picture():
    model = tiny.sdxl()
    learned = tuned_prompt(model, inverted(model), 2, mix=0.0)
    assert torch.equal(replay(model, learned, OTHER), replay(model, learned))


def test_a_prompt_tuned_from_the_target_begins_as_the_target():
    model = tiny.sd15()
    inversion = inverted(model)
    learned = tuned_prompt(model, inversion, 1, tolerance=1.0, target=OTHER)
    assert torch.equal(learned.theta["cond"].tensor, OTHER[0][0].expand(STEPS, -1, -1, -1))
