"""Any editor with any other, in either order, and any editor on any inversion."""
import copy
from functools import cache
from itertools import combinations

import pytest
import torch
from palimpsest.attention.style_aligned import ReferencePicture, Sharing, adain
from palimpsest.editing.sites import Rows, Site, Source
from palimpsest.guidance.magic_remover import MagicRemover
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover
from palimpsest.nodes.inversion.replay import PalimpsestReplay

from editors import EDITORS, FAMILIES, GUIDED, LATER, STEPS
from every import ALIKE, INVERSIONS
from explicit import HEADS, SIDE, Call, Run, apply_maps, attention, features, relative, softmax_maps
from runs import Case, kept

EVERY = {**EDITORS, **GUIDED}
SINGLE = [n for n in EVERY if "," not in n and n not in ("refine", "mutual by words")]
QUARTER = {"blend", "shrinking", "objects", "remove"}  # their masks leave the upper right corner to the source
AS_ONE = set(map(frozenset, (  # one of the two leaves the other nothing to do
    # the same place
    ("blend", "remove"), ("blend", "shrinking"), ("blend", "objects"), ("remove", "shrinking"),
    ("shrinking", "objects"), ("objects", "remove"),
    # one look-up of one picture's queries and keys, or of its values
    ("mutual", "remove"), ("mutual", "cross image"), ("free prompt", "composite"), ("feature share", "remove"),
    ("mid-step features", "composite"), ("dreammatcher", "remove"),
    ("swap", "reweight"),  # of two Attention Injects on the same words the last counts
    ("remove", "ledits"))))  # on these nets the concept is found outside the place
# two of them are told apart by a third step
LATE = {"swap", "reweight", "free prompt", "mid-step features", "mid-step words"}
PAIRS = [(*pair[::(-1) ** i], FAMILIES[i % len(FAMILIES)]) for i, pair in enumerate(combinations(SINGLE, 2))]


@kept
def case(family, steps=STEPS):
    return Case(family, steps=steps)


@cache
def plain(family, steps):
    return case(family, steps).sample()


@cache
def alone(editor, family, steps):
    return case(family, steps).sample(EVERY[editor](case(family, steps)))


def corner(x):
    height, width = x.shape[-2:]
    return x[..., :height // 2, width // 2:]


@pytest.mark.parametrize("first, second, family", PAIRS)
def test_two_editors(first, second, family):
    """The run ends well and both editors act. If one of the two holds the source, its corner comes back unchanged.
    Every editor stands before half of the others and after half."""
    steps = 3 if {first, second} <= LATE or {first, second} & LATER else 2
    c, each = case(family, steps), () if {first, second} in AS_ONE else (first, second)
    others = [plain(family, steps), *(alone(editor, family, steps) for editor in each)]
    found = c.sample(EVERY[second](c, EVERY[first](c)))
    assert found.isfinite().all()
    assert all((found - other).abs().max() > 1e-3 * other.abs().max() for other in others)
    if {first, second} & QUARTER:
        torch.testing.assert_close(corner(found), corner(c.latent), rtol=0, atol=1.5e-5)


@pytest.mark.parametrize("first, second", [("objects", "remove"), ("remove", "objects")])
def test_objects_leave_to_magic_remover_what_lies_in_their_place(first, second):
    """From the first step on, so that the two of them are it alone."""
    c = case("sd2", 2)
    found = c.sample(EVERY[second](c, EVERY[first](c)))
    torch.testing.assert_close(found, alone("remove", "sd2", 2), rtol=0, atol=1e-5)


def part(c, rows, columns):
    """A mask in pixels of some latent cells."""
    mask = torch.zeros(1, *(8 * side for side in c.latent.shape[-2:]))
    mask[:, rows[0] * 8:rows[1] * 8, columns[0] * 8:columns[1] * 8] = 1
    return mask


def remove(c, model, mask, words="", end=0.8):
    return PalimpsestMagicRemover.execute(model or c.model, c.inversion, words, 0.3, 20.0, 0.0, end,
                                          mask=mask).result[0]


SELF_ATTENTION = ["swap", "mutual", "mutual by words", "plug and play", "free prompt", "mixing", "composite",
                  "style aligned",
                  "cross image"]


@pytest.mark.parametrize("other, family", [(name, FAMILIES[i % len(FAMILIES)])
                                           for i, name in enumerate(SELF_ATTENTION)])
def test_a_remover_looks_up_the_source_beside_any_editor_of_self_attention(other, family):
    """Equal in either order, and no output of an attention is larger than its input."""
    c, sizes, found = case(family), {"to_v": 0.0, "to_out": 0.0}, []

    def fill(c, model=None):
        return remove(c, model, part(c, (0, 4), (0, 4)))

    def seen(name, x):
        sizes[name] = max(sizes[name], float(x.abs().max()))

    layers = [m.attn1 for m in c.model.model.diffusion_model.modules() if hasattr(m, "attn1")]
    hooks = [a.to_v.register_forward_hook(lambda m, given, v: seen("to_v", v)) for a in layers]
    hooks += [a.to_out.register_forward_pre_hook(lambda m, given: seen("to_out", given[0])) for a in layers]
    try:
        for first, second in ((fill, EVERY[other]), (EVERY[other], fill)):
            found.append(c.sample(second(c, first(c))))
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert 0 < sizes["to_out"] < 1.7 * sizes["to_v"]  # 1.67 is the contrast of Cross-Image Attention


class Both(Run):
    """A run of two editors that act at every σ."""

    def within(self, sigma, start, end):
        return True


def test_a_removed_place_leaves_the_softmax_of_a_shared_style():
    """Of the source's keys and the style's together, computed here."""
    remover = MagicRemover(None, (), torch.zeros(1, 2 * SIDE, 2 * SIDE))
    remover.place[:, :SIDE, :SIDE] = 1
    site, share = Site("self", ("output", 0, 0), (SIDE, SIDE), 0.5, HEADS), Sharing(1.0, 0.7, True)
    style = ReferencePicture(None, frozenset([site.address]), 0, 1, share=share)
    (q, k, v), (_, k_s, v_s), reference = (features(2, seed) for seed in range(3))
    run = Both()
    run.editors = remover, style
    rows = Rows(Call(run), {}, 2)

    def inner(q, k, v):
        return style.attend(rows, site, q, k, v, Source(zip("qkv", reference)), attention)

    got = remover.attend(rows, site, q, k, v, Source(k=k_s, v=v_s), inner)
    bias = torch.zeros(SIDE, SIDE)
    bias[:SIDE // 2, :SIDE // 2] = -torch.inf
    bias = torch.cat([bias.flatten(), torch.full((SIDE * SIDE,), 0.7)])
    maps = softmax_maps(adain(q, reference[0]), torch.cat([adain(k_s, reference[1]), reference[1]], 1), bias)
    assert relative(got, apply_maps(maps, torch.cat([v_s, reference[2]], 1))) < 1e-5


def test_a_remover_is_not_given_some_of_its_rows():
    c = Case("sd15", ("a red cat", "a black dog"), ("a blue cat", "a black pig"), batch=2, steps=STEPS)
    masks = torch.cat([part(c, (0, 4), (0, 4)), part(c, (0, 4), (4, 8))])
    model = PalimpsestMutualSelfAttention.execute(c.model, c.inversion, 0.0, 1.0, "", "", "", 0.1, False, masks,
                                                  masks).result[0]
    with pytest.raises(ValueError, match="MagicRemover is given 1 of 2 rows.*give that editor one mask"):
        c.sample(remove(c, model, part(c, (0, 3), (0, 4))))


def test_two_removed_objects_are_one_removed_place():
    c = case("sd15")
    upper, lower, both = part(c, (0, 3), (0, 4)), part(c, (5, 8), (2, 6)), part(c, (0, 3), (0, 4))
    both[:, 40:, 16:48] = 1
    found = c.sample(remove(c, remove(c, None, upper), lower), positive=c.source)
    assert torch.equal(found, c.sample(remove(c, None, both), positive=c.source))
    assert torch.equal(found, c.sample(remove(c, remove(c, None, lower), upper), positive=c.source))
    changed = (found - c.latent).abs().amax((0, 1)) > 1e-4
    assert torch.equal(changed, both[0, ::8, ::8].bool())


def test_two_removed_objects_are_each_moved_in_their_own_place_and_time():
    c = case("sd15")
    upper, lower = part(c, (0, 3), (0, 4)), part(c, (5, 8), (2, 6))
    filled = c.sample(remove(c, remove(c, None, upper), lower), positive=c.source)
    for words in (("cat", ""), ("", "mat"), ("cat", "mat")):
        found = c.sample(remove(c, remove(c, None, upper, words[0]), lower, words[1]), positive=c.source)
        apart = (found - filled).abs().amax((0, 1))
        assert float(apart[:3, :4].max()) > 1e-3 if words[0] else 1e-3 < float(apart[5:, 2:6].max())
    brief = c.sample(remove(c, remove(c, None, upper), lower, end=0.4), positive=c.source)
    assert (brief - filled).abs().max() > 1e-3


def test_objects_of_two_pictures_are_not_removed_together():
    c, other = case("sd15"), Case("sd15", "a black dog on a mat", steps=STEPS)
    with pytest.raises(ValueError, match="another INVERSION.*same INVERSION to both"):
        remove(other, remove(c, None, part(c, (0, 3), (0, 4))), part(c, (5, 8), (2, 6)))


METHODS = list(INVERSIONS)


@kept
def on(family, method):
    """The case inverted by a method, and its own Replay."""
    c = copy.copy(case(family))
    with torch.inference_mode():
        c.inversion = INVERSIONS[method](case(family))
        c.replayed, c.sampler, *_ = PalimpsestReplay.execute(c.model, c.inversion, 0.0).result
        c.noise = c.model.model.process_latent_out(c.inversion.latents[0])
    return c


@cache
def plain_on(family, method):
    c = on(family, method)
    return c.sample(c.replayed, sampler=c.sampler)


@pytest.mark.parametrize("editor, method, family", [
    (e, method, FAMILIES[METHODS.index(method) % len(FAMILIES)])
    for i, e in enumerate(SINGLE) for j, group in enumerate(ALIKE) if (i + j) % 3 == 0
    for method in [group[i // 3 % len(group)]]])
def test_any_editor_on_any_inversion(editor, method, family):
    """On Replay's MODEL and SAMPLER an editor edits, and holds what it should hold. An editor has every third way
    back, and of the inversions that Replay walks back alike one in turn. An inversion has one family."""
    c = on(family, method)
    found = c.sample(EVERY[editor](c, c.replayed), sampler=c.sampler)
    assert found.isfinite().all()
    if editor != "blend by words":  # a random net may see a word everywhere
        assert (found - plain_on(family, method)).abs().max() > 1e-3 * plain_on(family, method).abs().max()
    if editor in QUARTER:
        torch.testing.assert_close(corner(found), corner(c.latent), rtol=0, atol=1e-4)
