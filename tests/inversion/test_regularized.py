"""Regularized inversion (pix2pix-zero): its losses, its descent, and its effect on the noise."""
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline as Authors,
)
from palimpsest.inversion import ddim, regularized
from palimpsest.metrics.whiteness import white_range, whiteness
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.regularized import PalimpsestRegularizedInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from runs import kept

STEPS = 5


@pytest.fixture(autouse=True)
def executor():
    """Runs each test as the host's executor runs nodes."""
    with torch.inference_mode():
        yield


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(*shape):
    """Noise whose cells are like their neighbours, with mean 0.3 and a variance below 1."""
    x = noise(*shape)
    return 0.3 + (x + x.roll(1, -1) + x.roll(1, -2)) / 2.5


def explicit_pair_loss(eps, shifts):
    """Section 3.1, cell by cell: Σ over pyramid, channels and axes of the squared mean of
    η[y,x]·η[y-δ,x] and η[y,x]·η[y,x-δ]."""
    loss, eta = 0.0, eps
    for delta in shifts:
        channels, h, w = eta.shape
        for c in range(channels):
            d = int(delta[c])
            rows = [float(eta[c, y, x] * eta[c, (y - d) % h, x]) for y in range(h) for x in range(w)]
            columns = [float(eta[c, y, x] * eta[c, y, (x - d) % w]) for y in range(h) for x in range(w)]
            loss += (sum(rows) / (h * w)) ** 2 + (sum(columns) / (h * w)) ** 2
        eta = (eta[:, 0::2, 0::2] + eta[:, 1::2, 0::2] + eta[:, 0::2, 1::2] + eta[:, 1::2, 1::2]) / 4
    return loss


@pytest.mark.parametrize("height, width, levels", [(16, 16, 2), (8, 8, 1), (32, 64, 3)])
def test_the_pair_loss_is_the_papers_sum_over_the_pyramid(height, width, levels):
    eps = smooth(2, 3, height, width)
    shifts = regularized.draw(regularized.pyramid(eps), torch.Generator().manual_seed(1))
    assert len(shifts) == levels and all(len(d) == 3 for d in shifts)
    found = regularized.pair_loss(eps, shifts)
    assert found.tolist() == pytest.approx([explicit_pair_loss(row, shifts) for row in eps], rel=1e-12)
    assert regularized.pair_loss(eps[:, :, None], shifts).tolist() == pytest.approx(found.tolist())  # for any rank


def test_shifts_are_every_one_from_a_cell_to_half_a_side():
    generator = torch.Generator().manual_seed(0)
    draws = [regularized.draw(regularized.pyramid(noise(1, 4, 16, 16)), generator) for _ in range(200)]
    for level, side in enumerate((16, 8)):
        assert set(torch.cat([d[level] for d in draws]).tolist()) == set(range(1, side // 2 + 1))


def test_both_losses_are_those_of_diffusers():
    """For one latent, with the shifts that the pipeline draws."""
    eps = smooth(1, 4, 32, 32)
    generator = torch.Generator().manual_seed(5)
    sides = 32, 16, 8
    shifts = torch.stack([torch.cat([torch.randint(side // 2, (1,), generator=generator) for side in sides])
                          for _ in range(4)])
    theirs = Authors.auto_corr_loss(None, eps, torch.Generator().manual_seed(5))
    assert regularized.pair_loss(eps, list(shifts.T)).item() == pytest.approx(theirs.item(), rel=1e-12)
    assert regularized.kl_loss(eps).item() == pytest.approx(Authors.kl_divergence(None, eps).item(), rel=1e-12)


def test_the_kl_loss_is_twice_the_divergence_from_white_noise():
    """Against the host's own formula for two normal distributions. Each picture has its own."""
    eps = torch.cat([smooth(1, 4, 16, 16), 2 * noise(1, 4, 16, 16)])
    normal = torch.distributions.Normal(eps.flatten(1).mean(1), eps.flatten(1).std(1))
    expected = 2 * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    assert regularized.kl_loss(eps).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_descent_takes_the_losses_gradient():
    """Against differences of the loss when one cell moves."""
    eps, h = smooth(1, 2, 16, 16), 1e-5
    shifts = [torch.tensor([3, 8]), torch.tensor([1, 4])]
    for loss in (regularized.kl_loss, lambda e: regularized.pair_loss(e, shifts)):
        moved = regularized.descend(loss, eps, 1.0) - eps
        for c, y, x in ((0, 3, 5), (1, 15, 0)):
            there, back = eps.clone(), eps.clone()
            there[0, c, y, x] += h
            back[0, c, y, x] -= h
            assert float(moved[0, c, y, x]) == pytest.approx(float(loss(back) - loss(there)) / (2 * h), rel=1e-4)
    assert torch.is_inference_mode_enabled() and not moved.requires_grad


def test_a_prediction_takes_the_authors_steps():
    """K times: R steps of λ/R along the first loss, each with new shifts, then one step of λ along the second."""
    eps, generator = smooth(2, 3, 16, 16), torch.Generator().manual_seed(4)
    expected = eps
    for _ in range(2):
        for _ in range(3):
            shifts = regularized.draw(regularized.pyramid(eps), generator)
            expected = regularized.descend(lambda e: regularized.pair_loss(e, shifts), expected, 7.0 / 3)
        expected = regularized.descend(regularized.kl_loss, expected, 11.0)
    found = regularized.regularize(eps, torch.Generator().manual_seed(4), lambda_ac=7.0, lambda_kl=11.0, reg_steps=2,
                                   ac_rolls=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_each_term_draws_its_own_number_to_white_noise():
    eps = smooth(1, 4, 16, 16)
    before = whiteness(eps)
    pair, kl = (regularized.regularize(eps, torch.Generator(), **{"lambda_ac": 0.0, "lambda_kl": 0.0, name: 60.0})
                for name in ("lambda_ac", "lambda_kl"))
    assert abs(whiteness(pair)["neighbours"]) < 0.9 * abs(before["neighbours"])
    assert whiteness(kl)["kl"] < 0.5 * before["kl"]
    assert torch.allclose(whiteness(kl)["neighbours"], before["neighbours"])


def test_numbers_of_white_noise_lie_in_their_range_nineteen_times_of_twenty():
    found = whiteness(noise(4000, 4, 8, 8, dtype=torch.float32))
    for name, (low, high) in white_range((4, 8, 8)).items():
        share = ((found[name] >= low) & (found[name] <= high)).double().mean().item()
        assert share == pytest.approx(0.95, abs=0.012), name


def test_whiteness_knows_a_latent_whose_numbers_are_known():
    """Rows of +1 and of -1 in turn: a neighbour in the row is equal, a neighbour in the column opposite."""
    x = torch.tensor([1.0, -1.0]).repeat(4)[:, None].expand(8, 8)[None, None] * 2 + 0.5
    found = {n: v.item() for n, v in whiteness(torch.cat([x, x], 1)).items()}
    expected = {"mean": 0.5, "std": 2.0, "kl": (4 + 0.25 - 1 - torch.tensor(4.0).log().item()) / 2, "neighbours": 0.0}
    assert found == pytest.approx(expected)
    assert whiteness(x[..., :2])["neighbours"].item() == pytest.approx((8 - 14) / 22)


def picture(model, batch=1):
    return {"samples": model.model.process_latent_out(tiny.latent(model, batch))}


@kept
def family(name):
    return {**tiny.UNETS, **tiny.FLOWS}[name]()


SETTINGS = {"lambda_ac": 20.0, "lambda_kl": 20.0, "reg_steps": 2, "ac_rolls": 2, "seed": 3}


def invert(model, latent=None, source=None, node=PalimpsestRegularizedInvert, **settings):
    settings = settings if node is PalimpsestDDIMInvert else SETTINGS | settings
    return node.execute(model, source or tiny.cond(), latent or picture(model), STEPS, "ddim_uniform",
                        **settings).result[0]


def same(a, b):
    return all(map(torch.equal, a.latents, b.latents))


@pytest.mark.parametrize("name", tiny.UNETS)
def test_without_weights_it_is_ddim_inversion_to_the_bit(name):
    model = family(name)
    plain = invert(model, node=PalimpsestDDIMInvert)
    assert same(invert(model, lambda_ac=0.0, lambda_kl=0.0), plain) and same(invert(model, reg_steps=0), plain)


@pytest.mark.parametrize("name", tiny.UNETS)
def test_every_family_inverts_finite_and_at_ddims_cost(name):
    model = family(name)
    inversion, plain = invert(model), invert(model, node=PalimpsestDDIMInvert)
    assert inversion.method == "Regularized" and inversion.trajectory == "deterministic" and not inversion.theta
    assert all(x.isfinite().all() for x in inversion.latents) and not same(inversion, plain)
    assert torch.equal(inversion.latents[-1], plain.latents[-1])
    assert inversion.provenance["evaluations"] == plain.provenance["evaluations"] == plain.provenance["steps"]
    m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
    found = SamplerCustom.execute(m, False, 0, 1.0, tiny.cond(), tiny.cond(), solver, sigmas,
                                  latent).result[0]["samples"]
    assert found.isfinite().all()


def test_each_step_is_eulers_with_the_regularized_noise():
    """x_n = x_c + (σ_n - σ_c)·ε', with ε' from the prediction that plain inversion would take."""
    x, sigmas = noise(2, 4, 8, 8), torch.tensor([9.0, 2.0, 0.0], dtype=torch.float64)

    def model(x, sigma):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    path = regularized.invert(model, x, sigmas, disable=True, seed=6)
    first, generator = ddim.invert(model, x, sigmas[1:], disable=True)[0], torch.Generator().manual_seed(6)
    expected = x + 2 * regularized.regularize((first - x) / 2, generator)
    torch.testing.assert_close(path[1], expected, rtol=1e-10, atol=1e-10)
    guess = expected * ((1 + 81.0) / (1 + 4.0)) ** 0.5
    eps = regularized.regularize((guess - model(guess, sigmas[:1].expand(2))) / 9, generator)
    torch.testing.assert_close(path[0], expected + 7 * eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weights", [{"lambda_kl": 500.0, "lambda_ac": 0.0}, {"lambda_kl": 0.0, "lambda_ac": 400.0}])
def test_a_descent_that_diverges_is_told_once(weights, caplog):
    """On small latents a large weight steps over the loss's valley, further each time."""
    def model(x, sigma):
        return x - sigma.view(-1, 1, 1, 1) * smooth(2, 4, 8, 8) * 1.5

    sigmas = torch.tensor([9.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    path = regularized.invert(model, noise(2, 4, 8, 8), sigmas, disable=True, **weights)
    assert not path[0].norm() < 1e3  # or nan
    assert caplog.text.count("Regularisation diverges at sigma 2:") == 1 == caplog.text.count("diverges")
    assert "64 x 64, these are 8 x 8" in caplog.text
    caplog.clear()
    regularized.invert(model, noise(2, 4, 8, 8), sigmas, disable=True)
    assert not caplog.text


@pytest.mark.parametrize("changed", [{"lambda_ac": 40.0}, {"lambda_kl": 40.0}, {"reg_steps": 3}, {"ac_rolls": 3},
                                     {"seed": 4}])
def test_every_widget_acts(changed):
    assert not same(invert(family("sd15"), **changed), invert(family("sd15")))


def test_the_seed_alone_draws_the_shifts_and_a_picture_is_inverted_as_it_would_be_alone():
    model = family("sd15")
    torch.manual_seed(0)
    first, state = invert(model), torch.get_rng_state()
    torch.manual_seed(1)
    assert same(invert(model), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    both = invert(model, picture(model, 2))
    alone = invert(model, {"samples": picture(model, 2)["samples"][1:]})
    for pair, x in zip(both.latents, alone.latents):
        torch.testing.assert_close(pair[1:], x, rtol=1e-4, atol=1e-4)


def test_flow_models_are_refused():
    with pytest.raises(ValueError, match="SD3 MODEL predicts a flow.*use DDIM Invert"):
        invert(family("sd3"))


def test_on_the_miniature_the_noise_is_whiter_than_ddims():
    """Means over one held-out scene of each kind, at the paper's settings. Measured: 0.51 of DDIM's correlation and
    0.24 of its divergence. The test requires 0.7 and 0.4."""
    model, clip, vae = load_miniature()
    edits = [held_out_edit(0, kind) for kind in ("colour", "object", "material", "background")]
    source = torch.cat([clip.encode_from_tokens(clip.tokenize(e.source_text)) for e in edits])
    latent = {"samples": vae.encode(torch.stack([torch.from_numpy(e.source_image) for e in edits]))}
    plain, regular = (node.execute(model, [[source, {}]], latent, 10, "ddim_uniform", *settings).result[0]
                      for node, settings in (
        (PalimpsestDDIMInvert, ()), (PalimpsestRegularizedInvert, (20.0, 20.0, 5, 5, 0))))
    before, after = (whiteness(i.latents[0] / (1 + i.sigmas[0] ** 2).sqrt()) for i in (plain, regular))
    assert after["neighbours"].abs().mean() < 0.7 * before["neighbours"].abs().mean()
    assert after["kl"].mean() < 0.4 * before["kl"].mean()
