"""Delta Denoising Score against the paper's equation, a closed form and the authors' notebook; Self-Guidance's energy against
closed forms and its gradient against differences; MagicRemover; all on the host."""
from types import SimpleNamespace

import comfy.model_management as management
import comfy.utils
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.editing.editor import editors
from palimpsest.guidance.delta_denoise import WEIGHT, descend, levels
from palimpsest.guidance.self_guidance import (
    SelfGuidance,
    appearance,
    centroid,
    hard_shape,
    map_sites,
    shape,
    transformed,
)
from palimpsest.host.keys import running
from palimpsest.host.sampling import Solver
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover
from palimpsest.nodes.guidance.self_guidance import PalimpsestSelfGuidance
from torchvision.transforms.functional import resize as scaled

import tiny
from runs import Case, invert, kept, prompts, relative

CFG = 7.5


@kept
def case(**kwargs):
    return Case(**kwargs)


def delta(model, source, target, negative, latent, iterations=6, lr=0.1, cfg=CFG, start=0.05, end=0.95, seed=3, **extra):
    with torch.inference_mode():
        return PalimpsestDeltaDenoise.execute(model, source, target, negative, {"samples": latent, **extra}, iterations, lr, cfg, start,
                                              end, seed).result[0]["samples"]


def test_delta_denoise_is_the_papers_equation():
    """In the paper's z, on diffusers' network."""
    c, model = case(), tiny.sd15(output=0.6)
    unet, (source, target, null) = twin.unet(model), (e[0][0].clone() for e in (c.source, c.target, c.null))
    generator = torch.Generator().manual_seed(3)
    sampling = model.get_model_object("model_sampling")
    sigmas = levels(sampling, 6, 0.05, 0.95, generator)[:-1]
    alphas, timesteps = 1 / (1 + sigmas ** 2), sampling.timestep(sigmas)
    assert timesteps.min() >= 49 and timesteps.max() <= 950 and len(set(timesteps.tolist())) == 6
    z = first = model.model.process_latent_in(c.latent.clone())

    def guided(z, prompt, t):
        free, text = (unet(z, t, encoder_hidden_states=e).sample for e in (null, prompt))
        return free + CFG * (text - free)

    with torch.no_grad():
        for alpha, t in zip(alphas, timesteps):
            noise = torch.randn(z.shape, generator=generator)
            z_t, source_t = (alpha.sqrt() * at + (1 - alpha).sqrt() * noise for at in (z, first))
            z = z - 0.1 * 2000 / 64 ** 2 * (guided(z_t, target, t) - guided(source_t, source, t))
    ours = model.model.process_latent_in(delta(model, c.source, c.target, c.null, c.latent))
    assert relative(ours - first, z - first) < 1e-4
    assert relative(ours, first) > 0.01


@pytest.mark.parametrize("flow", [False, True])
def test_on_gaussian_pictures_the_distance_to_the_answer_shrinks_as_it_should(flow):
    """Pictures of a prompt are m + 0.5·noise: an iteration takes 1 - step·a²·σ/(a²·0.25 + σ²) … of the way that is left."""
    means = {"source": -1.0, "target": 2.0}
    sigmas = torch.tensor([0.3, 0.9, 0.6, 0.0], dtype=torch.float64)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def model(x, sigma, model_options):
        mean, (a, s) = means[model_options["transformer_options"]["palimpsest.prompt"][0]], share(sigma[0])
        return mean + a * 0.25 / (a ** 2 * 0.25 + s ** 2) * (x - a * mean)

    def share(sigma):
        return (1 - sigma if flow else 1.0), sigma

    found = descend(model, x, sigmas, {"model_options": {"transformer_options": {}}}, disable=True, rate=2.0, flow=flow,
                    generator=torch.Generator().manual_seed(2))
    left = 1.0
    for sigma in sigmas[:-1]:
        a, s = share(sigma)
        left *= 1 - 2.0 * WEIGHT * a * s / (a ** 2 * 0.25 + s ** 2)
    torch.testing.assert_close(found, x + 3.0 * (1 - left), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, known", [
    ("eps", [-0.513843, -0.459083, -0.469572, -0.410694, -0.750083, -0.539504]),
    ("v", [-0.389120, -0.311875, -0.368187, -0.314743, -0.342777, -0.357312])])
def test_three_iterations_are_the_authors_notebooks(kind, known, monkeypatch):
    """`known`: what DDS_zeroshot.ipynb's DDSLoss and SGD made of this picture with this network: five values and the mean."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    alphas = (1 - betas).cumprod(0)[[900, 400, 100]]
    sigmas, times = (1 / alphas - 1).sqrt(), dict(zip((1 / alphas - 1).sqrt().tolist(), (900, 400, 100)))
    x = torch.linspace(-1, 1, 64 * 64).view(1, 1, 64, 64)
    drawn = iter(torch.cos(torch.arange(64 * 64.0) * n).view(1, 1, 64, 64) for n in (1, 2, 3))

    def model(x, sigma, model_options):
        text = {"source": -0.3, "target": 0.6}[model_options["transformer_options"]["palimpsest.prompt"][0]]
        z, alpha = twin.z_of(x, sigma[0]), 1 / (1 + sigma[0] ** 2)
        null, prompt = (torch.tanh(z * (1 + times[float(sigma[0])] / 1000) + e) for e in (0.0, text))
        if kind == "v":
            null, prompt = (alpha.sqrt() * v + (1 - alpha).sqrt() * z for v in (null, prompt))
        return x - sigma[0] * (null + 7.5 * (prompt - null))

    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: next(drawn))
    moved = descend(model, x, torch.cat([sigmas, torch.zeros(1)]), {"model_options": {"transformer_options": {}}}, disable=True,
                    rate=0.1, generator=None) - x
    moved = torch.cat([moved.flatten()[[0, 1000, 2048, 3000, 4095]], moved.mean()[None]])
    torch.testing.assert_close(moved, torch.tensor(known), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_equal_prompts_leave_the_picture_bit_for_bit(family):
    c = case(family=family, batch=2)
    found = delta(c.model, c.source, c.source, c.null, c.latent)
    again = c.model.model.process_latent_out(c.model.model.process_latent_in(c.latent))
    assert torch.equal(found, again) and relative(delta(c.model, c.source, c.target, c.null, c.latent), again) > 1e-3


def test_flow_models_and_masks():
    model = tiny.sd3()
    with torch.inference_mode():
        latent = tiny.latent(model)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    prompts = tiny.cond(), tiny.cond(seed=2), tiny.cond(seed=3)
    found = delta(model, *prompts, latent, noise_mask=mask)
    again = model.model.process_latent_out(model.model.process_latent_in(latent))
    assert torch.equal(found[..., 4:, :], again[..., 4:, :]) and relative(found[..., :4, :], again[..., :4, :]) > 1e-3
    assert torch.equal(delta(model, prompts[0], prompts[0], prompts[2], latent), again)


def test_seeds_repeat_and_a_cancelled_run_leaves_nothing():
    c, steps = case(), []
    weights = {k: v.clone() for k, v in c.model.model.state_dict().items()}
    whole, other = (delta(c.model, c.source, c.target, c.null, c.latent, seed=seed) for seed in (3, 4))

    def cancel(value, total, preview, node_id=None):
        steps.append((value, total))  # the host leaves out what comes too soon after another
        management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            delta(c.model, c.source, c.target, c.null, c.latent)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert steps == [(1, 6)]
    assert torch.equal(delta(c.model, c.source, c.target, c.null, c.latent), whole) and not torch.equal(other, whole)
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_what_delta_denoise_cannot_do_is_said():
    c = case()
    edited = PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, 0, 0.8, 0, 0.5, 1.0, 0.5, "", "").result[0]
    with pytest.raises(ValueError, match="carries 1 edits"):
        delta(edited, c.source, c.target, c.null, c.latent)
    with pytest.raises(ValueError, match="from 0.9 to 0.1"):
        delta(c.model, c.source, c.target, c.null, c.latent, start=0.9, end=0.1)


def blob(x, y, width, n=32):
    """[1, n, n]: a bump about a point, in shares of the picture."""
    at = (torch.arange(n) + 0.5) / n
    return torch.exp(-(((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * width ** 2)))[None]


def test_shapes_move_and_grow_as_told():
    A = 0.01 + 0.2 * blob(0.4, 0.5, 0.08)
    S = shape(A)
    inside = (A - A.min()) / (A.max() - A.min() + 1e-4)
    wanted = (10 * (inside - 0.5)).sigmoid()
    torch.testing.assert_close(S, (wanted - wanted.min()) / (wanted.max() - wanted.min() + 1e-4))
    assert torch.equal(hard_shape(A), (inside > 0.5).float())
    torch.testing.assert_close(centroid(S), torch.tensor([[0.4, 0.5]]), rtol=0, atol=1e-3)
    moved = transformed(S, centroid(S), (0.125, -0.25), 1.0)
    torch.testing.assert_close(moved, S.roll((-8, 4), (1, 2)), rtol=0, atol=1e-3)
    grown = transformed(S, centroid(S), (0.125, 0.0), 1.5)
    torch.testing.assert_close(grown.mean(), 1.5 ** 2 * S.mean(), rtol=0.01, atol=0)
    torch.testing.assert_close(centroid(grown), torch.tensor([[0.525, 0.5]]), rtol=0, atol=2e-3)
    features = torch.arange(32.0).expand(1, 1, 32, 32)  # the column's number: its mean is where the shape is
    torch.testing.assert_close(appearance(A, features), torch.tensor([[0.4 * 32 - 0.5]]), rtol=0, atol=0.05)


def guidance(**kwargs):
    return SelfGuidance(None, frozenset(), 0.0, 1.0, **kwargs)


@pytest.mark.parametrize("terms", [dict(), dict(shape=0.0, position=1.0), dict(shape=0.0, size=1.0)])
def test_the_energy_is_least_where_the_object_is_wanted(terms):
    editor = guidance(move=(0.25, 0.0), resize=1.25, **terms)
    source, other = blob(0.3, 0.5, 0.08), blob(0.8, 0.2, 0.06)
    g = {name: float(editor.placed([object, rest], [source, other])) for name, object, rest in (
        ("wanted", blob(0.55, 0.5, 0.1), other), ("still", source, other), ("small", blob(0.55, 0.5, 0.08), other),
        ("elsewhere", blob(0.3, 0.5, 0.1), other), ("other moved", blob(0.55, 0.5, 0.1), source))}
    alike = {"position": {"small"}, "size": {"elsewhere"}}.get(next(reversed(terms), ""), set())  # what that term does not look at
    assert {name for name in g if name != "wanted" and g[name] < g["wanted"] + 0.001} == alike, g


def authors(A, source, features, known, dx):
    """(silhouette, centroid, size, appearance) of the authors' program: maps [n, n] of a token in the target and in the source, the
    latter moved to the right by dx cells, Ψ [C, m, m] of both."""
    def norm(a):
        return (a - a.min()) / (a.max() - a.min() + 1e-4)

    def middle(a):
        at = torch.linspace(0, 1, len(a))
        return torch.stack([(side / (side.sum() + 1e-4) * at).sum() for side in (a.sum(0), a.sum(1))])

    def soft(a):
        return norm(torch.sigmoid(10 * (norm(a) - 0.5)))

    def look(a, f):
        mask = scaled((norm(a.detach()) > 0.5).float()[None], f.shape[-2:], antialias=True)
        return (mask * f).sum((1, 2)) / (1e-4 + mask.sum())

    moved = torch.roll((norm(source) > 0.5).float(), dx, 1)
    return [(soft(A) - moved).abs().mean(), (middle(A) - middle(source) - torch.tensor([dx / len(A), 0.0])).abs().mean(),
            (soft(A).mean() - soft(source).mean()).abs(), (look(A, features) - look(source, known)).abs().mean()]


def test_the_energys_gradients_are_those_of_the_authors_program():
    generator = torch.Generator().manual_seed(3)
    A, source = (0.1 * blob(x, y, 0.1, 64)[0] + 0.02 * torch.rand(64, 64, generator=generator) for x, y in ((0.6, 0.55), (0.3, 0.5)))
    features, known = torch.randn(2, 6, 128, 128, generator=generator) + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    A.requires_grad_()
    features.requires_grad_()
    wanted = authors(A, source, features, known, dx=12)
    for term, theirs in zip(("shape", "position", "size"), wanted):
        editor = guidance(move=(12 / 64, 0.0), **{"shape": 0.0, term: 1.0})
        ours, = torch.autograd.grad(editor.placed([A[None]], [source[None]]).sum(), A)
        theirs, = torch.autograd.grad(theirs, A, retain_graph=True)
        cosine = (ours * theirs).sum() / ours.norm() / theirs.norm()
        assert cosine > 0.999 and abs(ours.norm() / theirs.norm() - 1) < 0.02, term  # their outer cells lie at 0 and 1
    g = guidance(appearance=1.0).looked([A[None]], [source[None]], features[None], [known[None]])
    ours = torch.autograd.grad(g.sum(), (A, features), allow_unused=True)
    theirs = torch.autograd.grad(wanted[3], (A, features), allow_unused=True)
    assert ours[0] is None and theirs[0] is None  # the maps are constants
    torch.testing.assert_close(ours[1], theirs[1])


def test_maps_are_read_where_the_authors_read_them():
    sdxl = {(section, n, d): 0.25 for section in ("input", "output") for n in range(3) for d in range(10)} | {("output", 3, 0): 0.5}
    assert map_sites(sdxl, 0.25) == {("output", 1, d) for d in (1, 2, 3)}
    sd15 = {("output", n, 0): 0.5 for n in (6, 7, 8)} | {("input", n, 0): 0.5 for n in (4, 5)}
    assert map_sites(sd15, 0.5) == {("output", n, 0) for n in (6, 7, 8)}


def test_coarser_maps_are_enlarged_to_half_the_latents_side():
    maps = torch.rand(1, 32, 24, 5, generator=torch.Generator().manual_seed(0))
    found, = SelfGuidance._of(maps, [[(1, 3)]], SimpleNamespace(share=0.25, grid=(32, 24)))
    torch.testing.assert_close(found, scaled(maps[..., [1, 3]].sum(-1), (64, 48), antialias=True))


def guide(model, inversion, words="cat", move=(0.3, 0.0), resize=1.0, others="", scale=50.0, appearance=0.05, end=0.8,
          **terms):
    return PalimpsestSelfGuidance.execute(model, inversion, words, *move, resize, others, scale, appearance, 0.0, end, 0.5,
                                          **terms).result[0]


def another(c):
    """The INVERSION of another picture, a dog."""
    source = prompts(c.clip, "a dog on a mat", "a dog on a mat")[0]
    return invert(c.model, source, 2 * tiny.latent(c.model, 1, c.latent.shape[-1]).flip(-1))[0]


@pytest.mark.parametrize("family, terms", [
    *((family, dict(others="mat")) for family in ("sd15", "sd2", "sdxl")), ("sd15", dict(shape=0.0, position=1.0, size=1.0)),
    ("sd15", dict(shape=0.0, appearance=1.0)), ("sdxl", dict(shape=0.0, appearance=1.0, looks_words="dog"))])
def test_what_is_taken_from_x0_is_the_slope_of_the_energy(family, terms):
    """v·σ²·∇_x g, by differences of g along a direction."""
    c, found = case(family=family), []
    model = guide(c.model, c.inversion, **terms, **({"looks": another(c)} if "looks_words" in terms else {}))
    editor = editors(model)[-1]
    direction = torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(5))

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        sigma, step = float(sigmas[2]), 5e-4

        def g(x):
            run.read(x, sigma)
            return editor.slope(run, x, sigma)[0]

        editor.before(run, x, sigma)
        pushed = -editor.after(run, torch.zeros_like(x), sigma)
        higher, lower = (g(x + side * step * direction) for side in (1, -1))
        found.append((float((pushed * direction).sum()), float((higher - lower) / (2 * step)) * editor.scale * sigma ** 2))
        return x

    c.sample(model, sampler=Solver(walk))
    (pushed, wanted), = found
    assert abs(wanted) > 1e-4 and abs(pushed - wanted) < 0.03 * abs(wanted), found


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_looks_that_are_kept_push_nothing(family):
    """The identity: source prompt as target, rows at the source's own latents; and its own looks may be named as another's."""
    c = case(family=family, batch=2)
    still, moved, own = (guide(c.model, c.inversion, move=(0.1, 0.0), **terms) for terms in (
        dict(shape=0.0), dict(shape=0.0, position=1.0), dict(shape=0.0, looks=c.inversion)))
    plain, same, other, named = (torch.stack(c.predictions(m, c.source)) for m in (c.model, still, moved, own))
    assert relative(same, plain) < 1e-5 < 1e-3 < relative(other, plain) and torch.equal(same, named)


def test_self_guidance_repeats_beside_another_editor_and_leaves_nothing():
    c = case()
    model = guide(c.model, c.inversion)
    both = PalimpsestAttentionInject.execute(model, c.inversion, c.edit, 0, 0.8, 0, 0.5, 1.0, 0.5, "", "").result[0]
    weights = {k: v.clone() for k, v in c.model.model.state_dict().items()}
    once, plain = c.sample(both), c.sample(c.model)
    assert torch.equal(c.sample(both), once) and relative(once, c.sample(model)) > 1e-3

    def cancel(value, total, preview, node_id=None):
        management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            pbar = comfy.utils.ProgressBar(6)
            c.sample(both, callback=lambda step, *_: pbar.update_absolute(step + 1, 6))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert not management.in_training and torch.equal(c.sample(c.model), plain)
    assert not c.model.model.diffusion_model.out._forward_pre_hooks
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_what_self_guidance_cannot_do_is_said():
    c = case()
    with pytest.raises(ValueError, match="no word names one"):
        guide(c.model, c.inversion, words=" ")
    with pytest.raises(ValueError, match="so that nothing is guided"):
        guide(c.model, c.inversion, appearance=0.0, shape=0.0)
    with pytest.raises(ValueError, match="so that nothing would take them"):
        guide(c.model, c.inversion, appearance=0.0, looks=c.inversion)
    with pytest.raises(ValueError, match="starts at 0 and ends at 0"):
        guide(c.model, c.inversion, end=0.0)
    with pytest.raises(ValueError, match='"dog" names no word'):
        c.sample(guide(c.model, c.inversion, words="dog"))
    with pytest.raises(ValueError, match="the sampled prompt carries no words"):
        c.sample(guide(c.model, c.inversion), positive=tiny.encode(c.clip, "a blue cat"))


def remove(c, **given):
    settings = {"words": "cat", "threshold": 0.3, "scale": 5.0, "start": 0.0, "end": 1.0, "mask": corner(c)} | given
    return PalimpsestMagicRemover.execute(c.model, c.inversion, *(settings.pop(n) for n in ("words", "threshold", "scale", "start", "end")),
                                          **settings).result[0]


def corner(c):
    mask = torch.zeros(1, *(8 * n for n in c.latent.shape[-2:]))
    mask[:, :32, :32] = 1
    return mask


def test_the_removed_place_changes_alone_and_words_move_it():
    c = case()
    found, filled, gone = (c.sample(remove(c, **given), positive=c.source) for given in ({}, {"scale": 0.0}, {"words": ""}))
    for x in (found, filled):
        torch.testing.assert_close(x[..., 4:, :], c.latent[..., 4:, :], rtol=0, atol=1e-5)
    assert torch.equal(filled, gone) and relative(found, filled) > 1e-3 < relative(filled, c.sample(c.model, positive=c.source))


def test_what_magic_remover_cannot_do_is_said():
    c = case()
    for given, message in (({"mask": None}, "neither MASK nor ATTENTION"), ({"end": 0.0}, "starts at 0 and ends at 0"),
                           ({"words": "dog"}, '"dog" names no word')):
        with pytest.raises(ValueError, match=message):
            remove(c, **given)
