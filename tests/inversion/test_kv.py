"""KV inversion's contents reach the pivot, and only the chosen layers of the target read them."""
import pytest
import torch
from palimpsest.host.unet import resolutions
from palimpsest.inversion import kv

import tiny
from learning import CFG, OTHER, SETTINGS, SIGMAS, contents, inverted, linear, read_by
from runs import relative


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
        assert relative(x, path[i + 1]) < 5e-3  # they are kept in half precision


@pytest.mark.parametrize("family", tiny.UNETS)
def test_only_chosen_layers_of_the_target_read_what_was_learned_for_them(family):
    model = tiny.UNETS[family]()
    learned = contents(model, inverted(model), 2)
    names = {"content." + ".".join(map(str, place)): place for place in resolutions(model.model.diffusion_model)}
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


def test_contents_that_16_bits_do_not_hold_stay_in_32(monkeypatch):
    """As nearly equal levels learn them."""
    def follow(predict, path, sigmas, start, **settings):
        return start[None].expand(2, -1, -1) + 1e6, [(1.0, 1.0, 1)] * 2

    monkeypatch.setattr(kv, "follow", follow)
    theta, _ = kv.optimise(None, None, [torch.zeros(1, 4, 8, 8)] * 3, torch.tensor([2.0, 1.0, 0.0]), {"a": (2, 4, 8)},
                           cfg=2.0)
    assert theta["a"].tensor.isfinite().all() and theta["a"].tensor.dtype == torch.float32
