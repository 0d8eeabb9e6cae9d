"""Every editor in half precision against fp32."""
from functools import cache

import torch

from editors import EDITORS, MOVES, THIRDS, WORDS, each_with
from joint import JOINT
from runs import kept, relative
from watching import case, of, predictions

SOME = THIRDS[1][:2]  # others' random networks round more than an editor moves them
HALF = torch.float16, torch.bfloat16


@each_with("dtype", HALF, 1, joint=JOINT, some=1)
def test_a_prediction_in_half_precision_is_near_fp32(editor, family, dtype):
    """At the source's latents an edited prediction has no larger error than a plain one, which shows what a CPU rounds.
    Where the latent moves first there is no answer."""
    found, wanted, plain, exact = (predicted(*of) for of in ((editor, family, dtype), (editor, family),
                                                             ("", family, dtype), ("", family)))
    assert found.isfinite().all()
    if editor not in MOVES:
        assert relative(found, wanted) <= 1.5 * relative(plain, exact)


@each_with("dtype", HALF, 1, joint=SOME, some=1)
def test_a_run_in_half_precision_is_near_fp32(editor, family, dtype):
    """Its error is no larger than the editor's own magnification of an error of the noise in fp32. Runs where words'
    maps meet a threshold or a sign may flip have no answer."""
    found, wanted = sampled(editor, family, dtype), sampled(editor, family)
    rounding, edit = relative(sampled("", family, dtype), sampled("", family)), relative(sampled("", family), wanted)
    assert found.isfinite().all() and rounding < edit
    if editor not in WORDS:
        magnified = max(1, sensitivity(editor, family) / sensitivity("", family))
        assert relative(found, wanted) <= 3 * magnified * rounding and relative(found, wanted) < edit


@kept
def edited(editor, family, dtype=torch.float32):
    """(case, MODEL), plain for ""."""
    c = case(family, dtype=dtype)
    return c, EDITORS[editor](c) if editor else c.model


@cache
def predicted(*of_run):
    return torch.cat([k.x0 for k in of(predictions(*edited(*of_run)), "positive")])


@cache
def sampled(*of_run):
    c, model = edited(*of_run)
    return c.sample(model)


@cache
def sensitivity(editor, family):
    """The magnification of an error of the noise."""
    c, model = edited(editor, family)
    error = 1e-3 * torch.randn(c.noise.shape, generator=torch.Generator().manual_seed(0)) * c.noise
    return relative(c.sample(model, latent=c.noise + error), sampled(editor, family))
