"""Every editor in half precision against fp32."""
import torch

from editors import EDITORS, MOVES, THIRDS, WORDS, each_with
from runs import relative
from watching import case, of, predictions

JOINT = THIRDS[1][:2]  # others' random networks round more than an editor moves them


@each_with("dtype", [torch.float16, torch.bfloat16], 1, joint=JOINT)
def test_half_precision_is_near_fp32(editor, family, dtype):
    """The plain model shows what a CPU rounds. With an editor, a prediction at the source's latents has no larger
    error. A run's error is no larger than the editor's own magnification of an error of the noise in fp32. Two cases
    have no answer and are left out: predictions where the latent moves first, and runs where words' maps meet a
    threshold or a sign may flip."""
    half, full = case(family, dtype=dtype), case(family)
    edited = [EDITORS[editor](c) for c in (half, full)]
    if editor not in MOVES:
        found, wanted, plain, exact = (torch.cat([k.x0 for k in of(predictions(c, model), "positive")]) for c, model in
                                       ((half, edited[0]), (full, edited[1]), (half, half.model), (full, full.model)))
        assert relative(found, wanted) <= 1.5 * relative(plain, exact)
    found, wanted = half.sample(edited[0]), full.sample(edited[1])
    rounding, edit = relative(half.sample(), full.sample()), relative(full.sample(), wanted)
    assert found.isfinite().all() and rounding < edit
    if editor not in WORDS:
        magnified = max(1, sensitivity(full, edited[1]) / sensitivity(full, full.model))
        assert relative(found, wanted) <= 3 * magnified * rounding and relative(found, wanted) < edit


def sensitivity(case, model):
    """The magnification of an error of the noise."""
    error = 1e-3 * torch.randn(case.noise.shape, generator=torch.Generator().manual_seed(0)) * case.noise
    return relative(case.sample(model, latent=case.noise + error), case.sample(model))
