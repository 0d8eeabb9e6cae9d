"""Every editor in half precision beside fp32."""
import torch

from editors import EDITORS, MOVES, WORDS, each_with
from runs import relative
from watching import case, of, predictions


@each_with("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_fp32(editor, family, dtype):
    """What a CPU rounds shows in the plain model: a prediction at the source's latents is no further off with an
    editor, and a run no further than the editor magnifies any error of the noise in fp32. Not asked where it has no
    answer: of predictions, where the latent is moved first; of a run, where words' maps meet a threshold or a sign may
    turn."""
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
    """How much an error of the noise is magnified."""
    error = 1e-3 * torch.randn(case.noise.shape, generator=torch.Generator().manual_seed(0)) * case.noise
    return relative(case.sample(model, latent=case.noise + error), case.sample(model))
