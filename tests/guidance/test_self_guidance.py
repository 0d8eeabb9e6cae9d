"""Self-Guidance's energy against closed forms and the authors' program, and its gradient against differences."""
from types import SimpleNamespace

import comfy.model_management as management
import comfy.utils
import pytest
import torch
from palimpsest.editing.editor import editors
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
from palimpsest.nodes.guidance.self_guidance import PalimpsestSelfGuidance
from torchvision.transforms.functional import resize as scaled

import tiny
from cases import case_of
from runs import invert, prompts, relative


def blob(x, y, width, n=32):
    """[1, n, n]: a bump around a point, in shares of the picture."""
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
    features = torch.arange(32.0).expand(1, 1, 32, 32)  # the number of the column, so the mean is at the shape
    torch.testing.assert_close(appearance(A, features), torch.tensor([[0.4 * 32 - 0.5]]), rtol=0, atol=0.05)


def guidance(**kwargs):
    return SelfGuidance(None, frozenset(), 0.0, 1.0, **kwargs)


@pytest.mark.parametrize("terms", [dict(), dict(shape=0.0, position=1.0), dict(shape=0.0, size=1.0)])
def test_the_energy_is_least_where_the_object_is_wanted(terms):
    editor = guidance(move=(0.25, 0.0), resize=1.25, **terms)
    source, other = blob(0.3, 0.5, 0.08), blob(0.8, 0.2, 0.06)
    g = {name: float(editor.layout_energy([object, rest], [source, other])) for name, object, rest in (
        ("wanted", blob(0.55, 0.5, 0.1), other), ("still", source, other), ("small", blob(0.55, 0.5, 0.08), other),
        ("elsewhere", blob(0.3, 0.5, 0.1), other), ("other moved", blob(0.55, 0.5, 0.1), source))}
    # this term does not see it
    alike = {"position": {"small"}, "size": {"elsewhere"}}.get(next(reversed(terms), ""), set())
    assert {name for name in g if name != "wanted" and g[name] < g["wanted"] + 0.001} == alike, g


def authors(A, source, features, known, dx):
    """(silhouette, centroid, size, appearance) of the authors' program.

    maps [n, n]: of a token in the target and in the source. The source's are moved to the right by dx cells.
    Ψ [C, m, m]: of both.
    """
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
    shift = torch.tensor([dx / len(A), 0.0])
    return [(soft(A) - moved).abs().mean(), (middle(A) - middle(source) - shift).abs().mean(),
            (soft(A).mean() - soft(source).mean()).abs(), (look(A, features) - look(source, known)).abs().mean()]


def test_the_energys_gradients_are_those_of_the_authors_program():
    generator = torch.Generator().manual_seed(3)
    A, source = (0.1 * blob(x, y, 0.1, 64)[0] + 0.02 * torch.rand(64, 64, generator=generator)
                 for x, y in ((0.6, 0.55), (0.3, 0.5)))
    features, known = torch.randn(2, 6, 128, 128, generator=generator) + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    A.requires_grad_()
    features.requires_grad_()
    wanted = authors(A, source, features, known, dx=12)
    for term, theirs in zip(("shape", "position", "size"), wanted):
        editor = guidance(move=(12 / 64, 0.0), **{"shape": 0.0, term: 1.0})
        ours, = torch.autograd.grad(editor.layout_energy([A[None]], [source[None]]).sum(), A)
        theirs, = torch.autograd.grad(theirs, A, retain_graph=True)
        cosine = (ours * theirs).sum() / ours.norm() / theirs.norm()
        assert cosine > 0.999 and abs(ours.norm() / theirs.norm() - 1) < 0.02, term  # their outer cells are at 0 and 1
    g = guidance(appearance=1.0).appearance_energy([A[None]], [source[None]], features[None], [known[None]])
    ours = torch.autograd.grad(g.sum(), (A, features), allow_unused=True)
    theirs = torch.autograd.grad(wanted[3], (A, features), allow_unused=True)
    assert ours[0] is None and theirs[0] is None  # the maps are constants
    torch.testing.assert_close(ours[1], theirs[1])


def test_maps_are_read_where_the_authors_read_them():
    sdxl = {(section, n, d): 0.25 for section in ("input", "output") for n in range(3)
            for d in range(10)} | {("output", 3, 0): 0.5}
    assert map_sites(sdxl, 0.25) == {("output", 1, d) for d in (1, 2, 3)}
    sd15 = {("output", n, 0): 0.5 for n in (6, 7, 8)} | {("input", n, 0): 0.5 for n in (4, 5)}
    assert map_sites(sd15, 0.5) == {("output", n, 0) for n in (6, 7, 8)}


def test_coarser_maps_are_enlarged_to_half_the_latents_side():
    maps = torch.rand(1, 32, 24, 5, generator=torch.Generator().manual_seed(0))
    found, = SelfGuidance._object_maps(maps, [[(1, 3)]], SimpleNamespace(resolution=0.25, grid=(32, 24)))
    torch.testing.assert_close(found, scaled(maps[..., [1, 3]].sum(-1), (64, 48), antialias=True))


def guide(model, inversion, words="cat", move=(0.3, 0.0), resize=1.0, others="", scale=50.0, appearance=0.05, end=0.8,
          **terms):
    return PalimpsestSelfGuidance.execute(model, inversion, words, *move, resize, others, scale, appearance, 0.0, end,
                                          0.5,
                                          **terms).result[0]


def another(c):
    """The INVERSION of another picture, of a dog."""
    source = prompts(c.clip, "a dog on a mat", "a dog on a mat")[0]
    return invert(c.model, source, 2 * tiny.latent(c.model, 1, c.latent.shape[-1]).flip(-1))[0]


@pytest.mark.parametrize("family, terms", [
    *((family, dict(others="mat")) for family in ("sd15", "sd2", "sdxl")),
    ("sd15", dict(shape=0.0, position=1.0, size=1.0)),
    ("sd15", dict(shape=0.0, appearance=1.0)), ("sdxl", dict(shape=0.0, appearance=1.0, looks_words="dog"))])
def test_what_is_taken_from_x0_is_the_gradient_of_the_energy(family, terms):
    """v·σ²·∇_x g, from differences of g along a direction."""
    c, found = case_of(family=family), []
    model = guide(c.model, c.inversion, **terms, **({"looks": another(c)} if "looks_words" in terms else {}))
    editor = editors(model)[-1]
    direction = torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(5))

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        sigma, step = float(sigmas[2]), 5e-4

        def g(x):
            run.read(x, sigma)
            return editor.energy_gradient(run, x, sigma)[0]

        editor.before(run, x, sigma)
        taken = -editor.after(run, torch.zeros_like(x), sigma)
        higher, lower = (g(x + side * step * direction) for side in (1, -1))
        found.append((float((taken * direction).sum()),
                      float((higher - lower) / (2 * step)) * editor.scale * sigma ** 2))
        return x

    c.sample(model, sampler=Solver(walk))
    (taken, wanted), = found
    assert abs(wanted) > 1e-4 and abs(taken - wanted) < 0.03 * abs(wanted), found


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_looks_that_are_kept_push_nothing(family):
    """The identity: the source prompt is the target, and the rows are at the source's own latents. Its own looks may
    also be given as another's."""
    c = case_of(family=family, batch=2)
    still, moved, own = (guide(c.model, c.inversion, move=(0.1, 0.0), **terms) for terms in (
        dict(shape=0.0), dict(shape=0.0, position=1.0), dict(shape=0.0, looks=c.inversion)))
    plain, same, other, named = (torch.stack(c.predictions(m, c.source)) for m in (c.model, still, moved, own))
    assert relative(same, plain) < 1e-5 < 1e-3 < relative(other, plain) and torch.equal(same, named)


def test_self_guidance_repeats_beside_another_editor_and_leaves_nothing():
    c = case_of()
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
    assert not c.model.model.diffusion_model.out._forward_hooks
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_what_self_guidance_cannot_do_is_said():
    c = case_of()
    with pytest.raises(ValueError, match="no word names one"):
        guide(c.model, c.inversion, words=" ")
    with pytest.raises(ValueError, match="so nothing is guided"):
        guide(c.model, c.inversion, appearance=0.0, shape=0.0)
    with pytest.raises(ValueError, match="so they have no effect"):
        guide(c.model, c.inversion, appearance=0.0, looks=c.inversion)
    with pytest.raises(ValueError, match="starts at 0 and ends at 0"):
        guide(c.model, c.inversion, end=0.0)
    with pytest.raises(ValueError, match='"dog" names no word'):
        c.sample(guide(c.model, c.inversion, words="dog"))
    with pytest.raises(ValueError, match="the sampled prompt carries no words"):
        c.sample(guide(c.model, c.inversion), positive=tiny.encode(c.clip, "a blue cat"))
