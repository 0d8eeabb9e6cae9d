"""Any editor with any other, in either order, and any editor on any inversion."""
import copy
from functools import cache
from itertools import combinations

import pytest
import torch
from editors import EDITORS, FAMILIES, STEPS
from palimpsest.nodes.exact import (PalimpsestBDIAInvert, PalimpsestCycleDiffusionInvert, PalimpsestDDPMInvert, PalimpsestDirectInvert,
                                    PalimpsestEDICTInvert)
from palimpsest.nodes.inversion import PalimpsestReplay
from palimpsest.nodes.null_text import PalimpsestNullTextOptimize
from palimpsest.nodes.refine import PalimpsestFixedPointInvert, PalimpsestNegativePromptInvert, PalimpsestReNoiseInvert
from palimpsest.nodes.semantic import PalimpsestLEDITSInvert
from palimpsest.nodes.tuning import PalimpsestKVInvert, PalimpsestPromptTuningInvert, PalimpsestStyleDiffusionInvert
from runs import Case, kept

SINGLE = [n for n in EDITORS if "," not in n and n not in ("refine", "mutual by words")]
QUARTER = {"blend", "shrinking", "objects", "remove"}  # whose masks leave the upper right corner to the source
PAIRS = [(a, b, FAMILIES[i % len(FAMILIES)]) for i, (a, b) in enumerate(combinations(SINGLE, 2))]


@kept
def case(family):
    return Case(family, steps=STEPS)


@cache
def plain(family):
    return case(family).sample()


def corner(x):
    height, width = x.shape[-2:]
    return x[..., :height // 2, width // 2:]


@pytest.mark.parametrize("first, second, family", PAIRS)
def test_two_editors_in_either_order(first, second, family):
    """The run ends well, it is edited, and where one of the two holds the source its corner comes back as it was."""
    c = case(family)
    for a, b in ((first, second), (second, first)):
        found = c.sample(EDITORS[b](c, EDITORS[a](c)))
        assert found.isfinite().all()
        assert (found - plain(family)).abs().max() > 1e-3 * plain(family).abs().max()
        if {a, b} & QUARTER:
            torch.testing.assert_close(corner(found), corner(c.latent), rtol=0, atol=1e-5)


def exact(node, *settings):
    return lambda c: node.execute(c.model, c.source, {"samples": c.latent}, STEPS, "ddim_uniform", *settings).result[0]


def learned(node):
    """A method that learns along DDIM's trajectory, every input at its default but one update a step."""
    def invert(c):
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        given = {"negative": c.null} if any(i.id == "negative" and not i.optional for i in node.define_schema().inputs) else {}
        return node.execute(**defaults | {"iterations": 1, "model": c.model, "inversion": c.inversion} | given).result[0]
    return invert


INVERSIONS = {
    "fixed point": exact(PalimpsestFixedPointInvert, 3, 1e-5, "anderson"), "renoise": exact(PalimpsestReNoiseInvert, 2, 1, 1, 0.0, 0),
    "negative prompt": exact(PalimpsestNegativePromptInvert, 0.0), "edict": exact(PalimpsestEDICTInvert, 0.93, 1.0),
    "bdia": exact(PalimpsestBDIAInvert, 1.0, 1.0), "direct": exact(PalimpsestDirectInvert, 1.0, 1.0),
    "ddpm": exact(PalimpsestDDPMInvert, 1.0, 0, 1.0), "cycle": exact(PalimpsestCycleDiffusionInvert, 0.1, 0), "ledits": exact(PalimpsestLEDITSInvert, 0, 1.0),
    "null text": learned(PalimpsestNullTextOptimize), "prompt tuning": learned(PalimpsestPromptTuningInvert),
    "style": learned(PalimpsestStyleDiffusionInvert), "kv": learned(PalimpsestKVInvert),
}


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
    (e, m, FAMILIES[(i + j) % len(FAMILIES)]) for i, e in enumerate(SINGLE) for j, m in enumerate(INVERSIONS)])
def test_any_editor_on_any_inversion(editor, method, family):
    """What the inversion learned and recorded is applied beside the editor, which edits and holds what it holds."""
    c = on(family, method)
    found = c.sample(EDITORS[editor](c, c.replayed), sampler=c.sampler)
    assert found.isfinite().all()
    if editor != "blend by words":  # a random net may see a word everywhere
        assert (found - plain_on(family, method)).abs().max() > 1e-3 * plain_on(family, method).abs().max()
    if editor in QUARTER and method not in ("edict", "bdia"):  # whose second latent is their own
        torch.testing.assert_close(corner(found), corner(c.latent), rtol=0, atol=1e-4)
