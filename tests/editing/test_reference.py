"""The reference branch: it shows what the source alone shows, at the least cost."""
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.attention.p2p import PromptToPrompt
from palimpsest.editing.reference import levels_together
from palimpsest.editing.run import attach
from palimpsest.host.unet import resolutions

from families import FAMILIES
from noting import Looks, Noted, assert_rounding
from runs import Case


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_a_reference_that_nobody_uses_leaves_sampling_bit_identical(family, cfg):
    case = Case(family)
    assert torch.equal(case.sample(attach(case.model, Looks(case.inversion)), cfg=cfg), case.sample(cfg=cfg))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_shows_what_the_source_alone_shows(family):
    """With the target's rows at the source's latent and with the source's prompt, both have the same features."""
    case = Case(family)
    notes = {}
    case.predictions(attach(case.model, Noted(case.inversion, notes)), case.source)
    assert len(notes) == 2 * len(resolutions(case.model.model.diffusion_model))
    for q, k, v, source in (n for found in notes.values() for n in found):
        for mine, theirs in ((q, source.q), (k, source.k), (v, source.v)):
            assert_rounding(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_kept_in_the_networks_own_precision(family, dtype):
    """Bit for bit, where each level is read by itself, in a forward of the target's shape."""
    case = Case(family, dtype=dtype, steps=2)
    notes = {}
    case.predictions(apart(attach(case.model, Noted(case.inversion, notes))), case.source)
    for *mine, source in (n for found in notes.values() for n in found):
        for a, b in zip(mine, (source.q, source.k, source.v), strict=True):
            assert a.dtype == b.dtype == dtype and torch.equal(a, b)


def apart(model):
    """The MODEL with another pack's wrapper, with which each step is read by itself."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", lambda executor, *args,
                               **kwargs: executor(*args, **kwargs))
    return model


def rows_of_forwards(run, case, *args, **kwargs):
    """(result, rows of each of the network's forwards). Counted without a wrapper, because a wrapper
    would keep the steps apart."""
    rows = []
    network = case.model.model.diffusion_model
    hook = network.register_forward_pre_hook(lambda network, inputs: rows.append(len(inputs[0])))
    try:
        return run(case, *args, **kwargs), rows
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_small_sources_are_read_for_several_steps_at_once(family):
    """The predictions equal those with one step per forward, which another pack's wrapper causes.
    Every step is read once."""
    case = Case(family)
    whole = torch.ones(len(case.edit.pairs[0].target.ids))
    edited = attach(case.model, PromptToPrompt(case.inversion, case.edit.pairs, 0.0, (0.8 * whole,), (whole,),
                                               0.0, 0.4))
    (a, together), (b, alone) = (rows_of_forwards(Case.predictions, case, model, case.target, 7.5)
                                 for model in (edited, apart(edited)))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert alone == [1, 2] * 5 + [2] * 2
    # 3 rows for 3 steps, then 2 for 2. 2 steps are not read
    assert together == [3] + [2] * 3 + [2] + [2] * 2 + [2] * 2


def test_a_solver_between_the_steps_reads_every_level_alone():
    case = Case()
    whole = torch.ones(len(case.edit.pairs[0].target.ids))
    editor = PromptToPrompt(case.inversion, case.edit.pairs, 0.0, (whole,), (whole,), 0.0, 0.4)
    _, rows = rows_of_forwards(Case.sample, case, attach(case.model, editor), sampler="dpm_2")
    assert rows == [3, 2] + [1, 2] * (2 * len(case.sigmas) - 4)


def test_large_sources_are_read_step_by_step():
    assert [levels_together(1, (side, side)) for side in (16, 32, 64, 96, 128)] == [3, 3, 2, 1, 1]
    assert [levels_together(rows, (16, 16)) for rows in (1, 2, 4)] == [3, 1, 1]
    assert [levels_together(1, (frames, 32, 32)) for frames in (1, 3, 5, 13)] == [3, 2, 1, 1], "each frame counts"
