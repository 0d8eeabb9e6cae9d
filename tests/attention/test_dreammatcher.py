"""DreamMatcher against the authors' code, explicit matches and a whole run that is written out."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management as management
import pytest
import torch
import torch.nn.functional as F
from palimpsest.attention import dreammatcher
from palimpsest.attention.dreammatcher import AppearanceMatching, descriptors, foreground, matches, nearest, principal
from palimpsest.editing.layers import decoder, parse_layers
from palimpsest.editing.sites import Rows, Site, Source
from palimpsest.host.network import enlarging
from palimpsest.host.tokens import parse_words
from palimpsest.host.unet import host_attention, resolutions
from palimpsest.nodes.attention.dreammatcher import PalimpsestDreamMatcher

import joint
import tiny
from cases import case_of
from explicit import DIM, HEADS, Call, Run, apply_maps, attention, softmax_maps
from families import each_family
from runs import relative
from unets import sd15, sdxl

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "dreammatcher.json").read_text())
CFG = 7.5


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(channels, side, seed):
    """[2, channels, side, side]: what a layer shows of Y, which is X moved to the right, and of X."""
    x = randn(seed, channels, side, side)
    return torch.stack([x.roll(max(1, side // 4), -1) + 0.3 * randn(seed + 1, channels, side, side), x])


def matching(cycle=0.4, threshold=0.05):
    """The editor of one site, and how to give it matches and M there."""
    found = SimpleNamespace(matched=None)
    return AppearanceMatching(None, frozenset(), 0, 1, words=None, descriptors=found, cycle=cycle,
                              threshold=threshold), found


def attended(editor, side, q, k, v, theirs, m):
    run = Run(shape=(len(q), 4, side, side))
    run.state(editor).foreground = m
    site = Site("self", ("output", 0, 0), (side, side), 1.0, HEADS)
    return editor.attend(Rows(Call(run), {}, len(q)), site, q, k, v, Source(v=theirs), attention)


@pytest.mark.parametrize("side, coarse, fine", [(8, 4, 8), (4, 4, 8), (5, 3, 5)])
def test_a_layer_gives_what_the_authors_code_does(side, coarse, fine):
    q, k, v, theirs = (randn(10 + i, 1, side * side, HEADS * DIM) for i in range(4))
    m = torch.rand(1, side, side, generator=torch.Generator().manual_seed(20))
    editor, found = matching()
    psi = descriptors([both(12, coarse, 1), both(6, fine, 3)])
    found.matched = lambda rows, site: tuple(x[None] for x in matches(psi, site.grid))
    got = attended(editor, side, q, k, v, theirs, m)
    assert relative(got.flatten()[::7], torch.tensor(AUTHORS[str(side)])) < 1e-5
    assert relative(got, attention(q, k, v)) > 0.1


def test_matches_are_the_most_alike_and_come_back():
    """On a grid that is not square, cell by cell. Some of the matches do not come back."""
    grid, psi = (3, 5), randn(0, 2, 7, 3, 5)
    psi[0, :, :, 1:] += 1.5 * psi[1, :, :, :-1]
    y, x = psi.flatten(2).transpose(1, 2)
    C = torch.tensor([[float(F.cosine_similarity(a, b, dim=0)) for b in x] for a in y])
    there, error = matches(psi, grid)
    assert torch.equal(there, C.argmax(1))
    for i, j in enumerate(there.tolist()):
        again = int(C[:, j].argmax())
        wanted = math.dist(divmod(i, 5), divmod(again, 5))
        assert float(error[i]) == pytest.approx(wanted)
    assert 3 < (error == 0).sum() < 15 and error.max() > 1


def test_values_are_the_references_in_the_foreground_where_matches_come_back():
    side, rows = 4, 2
    q, k, v, theirs = (randn(i, rows, side * side, HEADS * DIM).double() for i in range(4))
    there = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(rows)])
    error = torch.arange(32.0).remainder(5).view(rows, 16)
    m = torch.zeros(rows, side, side)
    m[0, 1:], m[1] = 1, 0.75
    editor, found = matching(cycle=0.8)
    found.matched = lambda rows, site: (there, error)
    wanted = v.clone()
    for row in range(rows):
        limit = 0.8 * side * float(m[row].mean())
        for i in range(16):
            if error[row, i] < limit:
                share = float(m[row].flatten()[i])
                wanted[row, i] = share * theirs[row, there[row, i]] + (1 - share) * v[row, i]
    got = attended(editor, side, q, k, v, theirs, m)
    torch.testing.assert_close(got, apply_maps(softmax_maps(q, k), wanted), rtol=1e-10, atol=1e-10)
    assert 5 < (wanted != v).any(-1).sum() < 27


def test_components_are_the_principal_ones(monkeypatch):
    """By singular values that fall. Fewer channels than components keep all their angles."""
    x = randn(0, 60, 24) * 0.3 ** torch.arange(24.0) @ torch.linalg.qr(randn(1, 24, 24)).Q + 3
    centred = x - x.mean(0)
    basis = torch.linalg.svd(centred).Vh[:6]
    exact = centred @ basis.T
    torch.testing.assert_close(principal(x, 6) @ principal(x, 6).T, exact @ exact.T, rtol=0, atol=1e-4)
    assert torch.equal(principal(x, 6), principal(x, 6)) and torch.equal(principal(x, 24), centred)
    layers = [both(12, 4, 1), both(6, 8, 3)]
    psi = descriptors(layers)
    assert psi.shape == (2, 18, 8, 8) and torch.allclose(psi.norm(dim=1), torch.ones(2, 8, 8))
    monkeypatch.setattr(dreammatcher, "COMPONENTS", 4)
    assert descriptors(layers).shape == (2, 8, 8, 8)


def test_what_is_held_at_once_changes_no_match(monkeypatch):
    a, b = randn(0, 33, 6), randn(1, 20, 6)
    whole = nearest(a, b)
    monkeypatch.setattr(dreammatcher, "CELLS", 45)
    assert torch.equal(nearest(a, b), whole) and len(set(whole.tolist())) > 5


def test_the_foreground_is_cut_or_soft():
    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.5]], [[0.0, 0.0], [0.1, 0.0]]], [[[1.0, 2.0], [1.0, 1.0]]] * 2])
    soft = torch.tensor([[[0, 0.25], [0.75, 1]], [[0, 1], [0, 0]]])
    torch.testing.assert_close(foreground(maps, (2, 2), 0.0), soft)
    assert torch.equal(foreground(maps, (2, 2), 0.5), (soft >= 0.5).float())
    assert torch.equal(foreground(maps, (4, 4), 0.5)[0, 2:, :2], torch.ones(2, 2))
    assert foreground(torch.ones(1, 1, 2, 2), (2, 2), 0.0).isfinite().all()


def test_layers_and_features_are_the_papers():
    """SD1.x: layers 10 to 15 of 16, and what the decoder's second and third of four layers give."""
    for unet, blocks in ((sd15(), (2, 5, 8)), (sdxl(), (2, 5))):
        assert list(enlarging(unet)) == [("enlarged", n) for n in blocks]
        assert all(unet.output_blocks[n][-1] is module for (_, n), module in enlarging(unet).items())
    assert decoder(sd15(), 0.5) == parse_layers("u3-8", sd15()) and decoder(sdxl(), 0.5) == parse_layers("u3-5", sdxl())


def put(c, words="cat", start=0.0, end=1.0, cycle=0.4, threshold=0.05, null_too=True, layers="", **kwargs):
    return PalimpsestDreamMatcher.execute(kwargs.get("model", c.model), kwargs.get("inversion", c.inversion), words,
                                          start, end, layers, cycle, threshold, null_too).result[0]


@each_family
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_a_picture_that_is_its_own_reference_stays(family, cfg):
    c = case_of(family=family, batch=2)
    mine = put(c, cycle=2.0, threshold=0.0)
    for a, b in zip(c.predictions(mine, c.source, cfg=cfg), c.predictions(c.model, c.source, cfg=cfg), strict=True):
        assert relative(a, b) < 1e-5
    assert relative(c.sample(mine, latent=c.apart), c.sample(c.model, latent=c.apart)) > 1e-3


class Explicit:
    """A run of four rows: X under the null prompt and its own, Y under the null prompt and its own. The U-Net has one
    layer that gives ψ and four of the decoder that take values, on two grids."""

    def __init__(self, c, start, cycle, threshold, null_too):
        self.c, self.start, self.cycle, self.threshold = c, start, cycle, threshold
        self.matched = {2: 0, 3: 1} if null_too else {3: 1}
        (word,), = parse_words("cat", c.target[0][1]["palimpsest_tokens"])
        self.words = word.positions
        self.unet, self.sampling = c.model.model.diffusion_model, c.model.get_model_object("model_sampling")
        self.shown, self.maps, self.changed = None, [], []

    def cross(self, q, k, v, options):
        q_y, k_y = (x[3:].unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k))
        A = (q_y @ k_y.transpose(-1, -2) * q_y.shape[-1] ** -0.5).softmax(-1)[0].mean(0)
        self.maps.append(A[:, list(self.words)].sum(-1).view(4, 4))
        return host_attention(q, k, v, options)

    def own(self, q, k, v, options):
        side = math.isqrt(q.shape[1])
        M = self.mask.repeat_interleave(side // 4, 0).repeat_interleave(side // 4, 1).flatten()
        v = v.clone()
        for row, reference in self.matched.items():
            features = self.before[[row, reference]]
            features = features - features.mean((0, 2, 3), keepdim=True)
            y, x = F.interpolate(F.normalize(features, dim=1), (side, side), mode="bilinear").flatten(2).transpose(1, 2)
            C = F.normalize(y, dim=1) @ F.normalize(x, dim=1).T
            given = v[row].clone()
            for i in range(side * side):
                j = int(C[i].argmax())
                back = int(C[:, j].argmax())
                if math.dist(divmod(i, side), divmod(back, side)) < self.cycle * side * float(M.mean()):
                    given[i] = M[i] * v[reference, j] + (1 - M[i]) * v[row, i]
            self.changed.append(float((given != v[row]).any(-1).float().mean()))
            v[row] = given
        return host_attention(q, k, v, options)

    def predicted(self, x, sigma):
        """The prediction at CFG."""
        c, sites = self.c, resolutions(self.unet)
        self.before, self.mask = self.shown, None
        if self.maps:
            mean = torch.stack(self.maps).mean(0)
            self.mask = (mean - mean.min()) / (mean.max() - mean.min())
            self.mask = (self.mask >= self.threshold).float() if self.threshold else self.mask
        matching = self.maps and sigma <= self.sampling.percent_to_sigma(self.start)
        replace = {"attn2": {p: self.cross for p, at in sites.items() if at == 0.5},
                   "attn1": {p: self.own for p in sites if p[0] == "output"} if matching else {}}
        module, = enlarging(self.unet).values()
        hook = module.register_forward_hook(lambda module, inputs, out: setattr(self, "shown", out))
        try:
            rows = torch.cat([c.inversion.at(sigma).to(x)] * 2 + [x] * 2)
            text = torch.cat([c.null[0][0], c.source[0][0], c.null[0][0], c.target[0][0]]).to(x)
            *_, null, target = c.model.model.apply_model(rows, x.new_full((4,), sigma), c_crossattn=text,
                                                         transformer_options={"patches_replace": replace}).chunk(4)
        finally:
            hook.remove()
        return null + CFG * (target - null)


@pytest.mark.parametrize("start, cycle, threshold, null_too", [(0.0, 2.0, 0.0, True), (0.4, 1.0, 0.3, True),
                                                               (0.0, 1.0, 0.3, False)])
@torch.inference_mode()
def test_a_whole_run_is_the_papers_written_out(start, cycle, threshold, null_too):
    c = case_of()
    settings = dict(start=start, cycle=cycle, threshold=threshold, null_too=null_too)
    edited = c.model.model.process_latent_in(c.sample(put(c, **settings), latent=c.apart, cfg=CFG))
    plain = c.model.model.process_latent_in(c.sample(latent=c.apart, cfg=CFG))
    management.load_models_gpu([c.model])
    explicit, x = Explicit(c, **settings), c.model.model.process_latent_in(c.apart).to(c.model.load_device)
    for sigma, clean in zip(c.sigmas[:-1].tolist(), c.sigmas[1:].tolist()):
        x = x + (clean - sigma) * (x - explicit.predicted(x, sigma)) / sigma
    assert relative(edited, x.to(edited)) < 1e-5 < 1e-3 < relative(plain, x.to(plain))
    assert any(0 < share < 1 for share in explicit.changed)


def test_what_dreammatcher_cannot_do_is_said():
    c = case_of()
    with pytest.raises(ValueError, match="no word names one"):
        put(c, words=" ")
    with pytest.raises(ValueError, match="runs from 0.5 to 0.5 of the schedule"):
        put(c, start=0.5, end=0.5)
    with pytest.raises(ValueError, match="choose a checkpoint of those families"):
        put(c, model=joint.JOINT["flux"]())
    with pytest.raises(ValueError, match='"dog" names no word'):
        c.sample(put(c, words="dog"))
    with pytest.raises(ValueError, match="it carries no words"):
        c.sample(put(c), positive=tiny.encode(c.clip, "a blue cat"))
