"""Plug-and-play's residual features are the source's, before the skip is added."""
import torch
from palimpsest.attention.plug_and_play import second_block

from explicit import relative
from families import each_family
from feature_edits import case, plug_and_play


def residuals(c, model, **kwargs):
    """([(inputs, output)] at each forward of a run, the block), for the residual block whose features are replaced."""
    unet, seen = c.model.model.diffusion_model, []
    number, = second_block(unet)
    block = unet.output_blocks[number][0]
    hook = block.register_forward_hook(lambda module, inputs, out: seen.append((inputs, out)))
    try:
        c.sample(model, **kwargs)
    finally:
        hook.remove()
    return seen, block


@each_family
def test_residual_features_are_those_before_the_skip_is_added(family):
    """A block's output is the target's own skip plus what the source's block adds to its own skip.
    Other rows are unchanged."""
    c = case(family)
    ((source, its_out), *steps), block = residuals(c, plug_and_play(c, 0.8, 0.0))
    # the source's forwards at two steps, the others at three
    assert [len(its_out), *(len(out) for _, out in steps)] == [2, 2, 2, 2]
    with torch.inference_mode():
        added = its_out - block.skip_connection(source[0])
        for i, (inputs, out) in enumerate(steps):
            own, skip = block(*inputs), block.skip_connection(inputs[0])
            changed = [relative(a, b) > 1e-3 for a, b in zip(out, own)]
            assert sum(changed) == (i < 2)
            for row in (r for r in range(2) if changed[r]):
                assert relative(out[row], skip[row] + added[i]) < 1e-5


def test_an_area_is_given_the_same_window_of_the_residual_features():
    c = case(size=16)
    cross, extras = c.target[0]
    # height, width, y, x. The block's grid is half of it
    area = [[cross, {**extras, "area": (12, 10, 4, 2), "strength": 1.0}]]
    (whole_, window, *_), block = residuals(c, plug_and_play(c, 0.8, 0.0), positive=area, cfg=1.0)
    assert [out.shape[-2:] for _, out in (whole_, window)] == [(8, 8), (6, 5)]
    with torch.inference_mode():
        added, found = (out - block.skip_connection(inputs[0]) for inputs, out in (whole_, window))
    assert relative(found[0], added[0, :, 2:8, 1:6]) < 1e-5
