"""Editors on EDICT and BDIA, the solvers with two latents: the source's branch, the blends and the moves of the latent,
against loops that write out the papers' lines."""
import copy
from dataclasses import dataclass

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.editing.editor import Editor
from palimpsest.editing.latent_move import Mover
from palimpsest.editing.masks import latent_mask
from palimpsest.editing.run import attach
from palimpsest.host.sampling import Solver
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.store import PalimpsestAttentionStore
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite
from palimpsest.nodes.blending.blended_latent import PalimpsestBlendedLatent
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask
from palimpsest.nodes.blending.object_aware import PalimpsestObjectAwareBlend
from palimpsest.nodes.guidance.proximal import PalimpsestProximalGuidance
from palimpsest.nodes.inversion.bdia import PalimpsestBDIAInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

from runs import Case, kept, relative

STEPS, CFG, P, GAMMA = 5, 3.0, 0.93, 0.7
METHODS = {"EDICT": (PalimpsestEDICTInvert, P), "BDIA": (PalimpsestBDIAInvert, GAMMA)}
BOTH = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def executor():
    """Runs each test as the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@kept
def on(method, family="sd15", size=8):
    """A case with its picture inverted by a method, under guidance."""
    c = copy.copy(Case(family, steps=STEPS, size=size))
    c.ddim, (node, setting) = c.inversion, METHODS[method]
    c.inversion = node.execute(c.model, c.source, {"samples": c.latent}, STEPS, "ddim_uniform", setting, CFG,
                               c.null).result[0]
    return c


def sample(c, edit=lambda model: model, prompt=None, start=0.0, replayed=None, latent=None):
    """The target, or a prompt, sampled from Replay of an INVERSION with edit(MODEL), in model space."""
    model, solver, sigmas, noise = PalimpsestReplay.execute(c.model, replayed or c.inversion, start).result
    return c.sample(edit(model), prompt, CFG, solver, noise["samples"] if latent is None else latent, sigmas)


def left(size=8, soft=False):
    """A mask of the left half, in pixels. A soft one falls to zero at its edge."""
    mask = torch.zeros(1, 8 * size, 8 * size)
    mask[..., :4 * size] = torch.linspace(1, 0, 4 * size) if soft else 1
    return mask


def blended(c, mask, start=0.0, words="", attention=None, inversion=None):
    return lambda m: PalimpsestLatentBlend.execute(m, inversion or c.inversion, start, words, "", 0.95, mask,
                                                   attention).result[0]


EMPTY = {
    "Latent Blend": lambda c: blended(c, 0 * left()),
    "Latent Blend from the last step on": lambda c: blended(c, 0 * left(), 0.9),
    "Latent Blend of another inversion": lambda c: blended(c, 0 * left(), 0.3, inversion=c.ddim),
    "Blended Latent": lambda c: lambda m: PalimpsestBlendedLatent.execute(m, 1, 0.5, c.inversion, 0 * left()).result[0],
    "Object-Aware Blend": lambda c: lambda m: PalimpsestObjectAwareBlend.execute(
        m, c.inversion, 0 * left(), 0.4).result[0],
    "Proximal Guidance": lambda c: lambda m: PalimpsestProximalGuidance.execute(
        m, c.inversion, "l0", 1.0, 1.0, 0.0, 0).result[0],
}


@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("editor", EMPTY)
@BOTH
def test_where_nothing_may_change_the_source_comes_back(method, editor, start):
    """To 100 dB under the target prompt, from the first level and from a later one, where the network
    sees EDICT's other latent."""
    c = on(method)
    assert relative(sample(c, start=start), c.latent) > 1e-2
    assert relative(sample(c, EMPTY[editor](c), start=start), c.latent) < 1e-5


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("soft", [False, True])
@BOTH
def test_outside_a_mask_the_source_stays_and_inside_the_edit(method, soft, family):
    c = on(method, family)
    found, free, right = sample(c, blended(c, left(soft=soft))), sample(c), slice(4, None)
    assert relative(found[..., right], c.latent[...,
                                                right]) < 1e-5 < 1e-2 < relative(free[..., right], c.latent[..., right])
    moved = relative(found[..., :4], c.latent[..., :4])
    assert moved > 1e-2 if soft else moved > 0.5 * relative(free[..., :4], c.latent[..., :4])


@BOTH
def test_a_blend_by_words_keeps_what_is_outside_of_them(method):
    c = on(method, size=16)
    attention = PalimpsestAttentionStore.execute(c.model, c.inversion, c.edit, 0.25).result[0]
    edit = blended(c, None, 0.0, "cat", attention)
    outside = edit(c.model).model_options["transformer_options"]["palimpsest"][-1].named.at(0.0)[0] == 0
    found = sample(c, edit)
    assert 0 < outside.float().mean() < 1
    assert relative(found[..., outside], c.latent[..., outside]) < 1e-5
    assert relative(found[..., ~outside], c.latent[..., ~outside]) > 1e-2


@BOTH
def test_noise_mask_holds_the_source_outside_what_it_found(method):
    """Reads at the first step only. The first call sees the whole latent free."""
    c, seen = on(method), []

    def edit(model):
        model = PalimpsestNoiseMask.execute(model, c.inversion, "source", 0.0, 0.0, 0.5).result[0]
        return attach(model, Look(lambda run, x, sigma: seen.append(run.state(run.editors[1]).mask)))

    found = sample(c, edit)
    outside = seen[-1][0] == 0
    assert 0 < outside.float().mean() < 1
    assert relative(found[..., outside], c.latent[..., outside]) < 1e-5


@dataclass(frozen=True, eq=False)
class Look(Editor):
    """Calls look(run, x, sigma) before the network is called."""
    look: object

    def before(self, run, x, sigma):
        self.look(run, x, sigma)
        return x


@dataclass(frozen=True, eq=False)
class Push(Mover):
    """Moves what the network sees by the same amount at every call."""
    by: torch.Tensor

    def move(self, run, x, sigma):
        return x + self.by.to(x)


def walked(c, lines, mask=None, by=0.0):
    """The target sampled by a method's own lines, written out. If a mask keeps the source, it is sampled beside it."""
    def walk(denoise, x, sigmas, extra_args, callback, disable):
        m = 1.0 if mask is None else latent_mask(mask, x.shape[-2:])[None].double()

        def eps(latent, source, n):
            """The network sees the latent through the mask."""
            x0 = denoise(keep(latent, source, m).float(), n.float().expand(len(x)), **extra_args)
            return (latent - x0.double()) / n

        return lines(c.inversion, eps, sigmas.double(), [z.double() for z in c.inversion.latents], m, by).float()

    noise = c.model.model.process_latent_out(c.inversion.latents[0])
    return c.sample(c.model, None, CFG, Solver(walk), noise, c.inversion.sigmas)


def keep(latent, source, m):
    return m * latent + (1 - m) * source


def edict_lines(inversion, eps, s, path, m, by):
    """x_inter from ε(y), y_inter from ε(x_inter), then the mixing. The latents take turns at going first."""
    sources = [[x, x + apart] for x, apart in zip(path, inversion.theta["y_minus_x"].tensor.double())]
    x, y = sources[0]
    for i in range(len(s) - 1):
        n, c, first, other, pair = s[i], s[i + 1], i % 2, 1 - i % 2, [x, y]
        y_inter = (sources[i + 1][1] - (1 - P) * sources[i + 1][0]) / P
        inter = [(sources[i + 1][0] - (1 - P) * y_inter) / P, y_inter]
        scale = ((1 + n ** 2) / (1 + c ** 2)).sqrt()
        pair[other] = pair[other] + by
        pair[first] = keep(pair[first] + (c - n) * eps(pair[other], sources[i][other], n), inter[first], m)
        pair[first] = pair[first] + by / scale
        pair[other] = keep(pair[other] + (c - n) * eps(scale * pair[first], scale * inter[first], n), inter[other], m)
        x = P * pair[0] + (1 - P) * pair[1]
        y = P * pair[1] + (1 - P) * x
    return x


def bdia_lines(inversion, eps, s, path, m, by):
    """D_i, U_i and o_i = γ·√(1+σ_{i-1}²)/√(1+σ_{i+1}²)·(x_{i+1} - U_i)."""
    x, before = path[0], None
    for i in range(len(s) - 1):
        x = x + by
        noise = eps(x, path[i], s[i])
        offset = inversion.theta["offset"].tensor[0].double()
        if i:
            U = x + (s[i - 1] - s[i]) * noise
            offset = GAMMA * ((1 + s[i + 1] ** 2) / (1 + s[i - 1] ** 2)).sqrt() * (before + by - U)
        before, x = x, keep(x + (s[i + 1] - s[i]) * noise + offset, path[i + 1], m)
    return x


LINES = {"EDICT": edict_lines, "BDIA": bdia_lines}


@pytest.mark.parametrize("soft", [False, True])
@BOTH
def test_a_blend_is_the_papers_lines_with_every_latent_kept(method, soft):
    c, mask = on(method), left(soft=soft)
    expected = walked(c, LINES[method], mask)
    assert relative(sample(c, blended(c, mask)), expected) < 1e-5
    assert relative(walked(c, LINES[method]), expected) > 1e-2


@BOTH
def test_a_moved_latent_is_the_papers_lines_from_there(method):
    c = on(method)
    by = 0.3 * torch.randn(c.latent.shape, generator=torch.Generator().manual_seed(3))
    found, expected = sample(c, lambda m: attach(m, Push(by))), walked(c, LINES[method], by=by.double())
    assert relative(found, expected) < 1e-5 < 1e-2 < relative(found, sample(c))


@BOTH
def test_the_source_branch_reads_what_the_network_read_in_the_inversion(method):
    """Attention Inject of the source onto itself changes nothing, and its reference rows equal
    those that the inversion saw."""
    c = on(method)
    node, setting = METHODS[method]
    same = PromptEdit((align(c.edit.pairs[0].source, c.edit.pairs[0].source, "auto"),))
    inverted, replayed, whole = [], [], (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, "", "")

    def watched(rows):
        model = c.model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", lambda executor, x, *args,
                                   **kwargs: rows.append(x.clone())
                                   or executor(x, *args, **kwargs))
        return model

    node.execute(watched(inverted), c.source, {"samples": c.latent}, STEPS, "ddim_uniform", setting, CFG, c.null)
    c = copy.copy(c)
    c.model = watched(replayed)
    found = sample(c, lambda m: PalimpsestAttentionInject.execute(m, c.inversion, same, *whole).result[0], c.source)
    assert relative(found, c.latent) < 1e-3  # rounding grows along a random net under guidance
    read = torch.cat([rows for rows in replayed if len(rows) != 2])
    known = [rows[0] for rows in inverted][method == "BDIA":][::-1]  # the first level comes from one more call
    assert len(read) == len(known) == STEPS * (2 if method == "EDICT" else 1)
    assert all(relative(row, z) < 1e-5 for row, z in zip(read, known))


@pytest.mark.parametrize("start", [0.0, 0.3])
@BOTH
def test_replays_own_latent_is_told_from_other_noise(method, start, caplog):
    c = on(method)
    sample(c, start=start)
    assert "other noise" not in caplog.text
    noise = torch.randn(c.latent.shape, generator=torch.Generator().manual_seed(5)) * 100
    sample(c, start=start, latent=noise)
    assert "other noise" in caplog.text


@BOTH
def test_a_composite_begins_with_both_latents_composed_and_holds_the_main_picture(method):
    c, pairs = on(method), []
    donor = Case(source="a black dog on a mat", steps=STEPS, latent=c.latent.flip(-1))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1

    def edit(model):
        model = PalimpsestInjectComposite.execute(model, c.inversion, donor.inversion, mask, 1, 0.4, 1.0, 0).result[0]
        return attach(model, Look(lambda run, x, sigma: pairs.append([z.clone() for z in run.coupled.pair])))

    found = sample(c, edit)
    inside, near = (torch.zeros(8, 8, dtype=torch.bool) for _ in range(2))
    inside[2:6, 2:6], near[1:7, 1:7] = True, True
    for latent in pairs[0]:
        assert relative(latent[..., inside], donor.inversion.latents[0][..., inside].double()) < 1e-6
    assert torch.equal(pairs[0][0][..., near], pairs[0][1][..., near])
    assert relative(found[..., ~near], c.latent[..., ~near]) < 1e-5
    assert relative(found[..., near], c.latent[..., near]) > 1e-2
