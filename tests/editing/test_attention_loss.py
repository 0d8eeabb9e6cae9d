"""The losses of attention maps that move latents: their gradients against differences, and their refusals."""
import pytest
from palimpsest.editing.attention_loss import loss_gradient
from palimpsest.editing.editor import editors
from palimpsest.host.keys import running
from palimpsest.host.sampling import Solver
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestEditDirection

import joint
import tiny
from moving_latents import CATS, DOGS, case, excite, noise, pull

EDITORS = {"excite": lambda c: excite(c.model), "pull": lambda c: pull(c.model, c.inversion)}


@pytest.mark.parametrize("family", tiny.UNETS)
@pytest.mark.parametrize("kind", EDITORS)
def test_gradients_are_the_differences_of_the_losses(kind, family):
    """Along the gradient itself, and in the papers' z: c²·∂L/∂x."""
    c, found = case(family=family, steps=4), []
    edited = EDITORS[kind](c)
    editor, = editors(edited)

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run, sigma = running(extra_args["model_options"]), float(sigmas[1])
        x = c.inversion.at(sigma).to(x) + 0.3 * sigma * noise()

        def at(x):
            if kind == "excite":
                return editor._loss_gradient(run, x, sigma)
            run.read(x, sigma)
            return loss_gradient(run, x, sigma, lambda site: True, *editor._distance())

        loss, gradient = at(x)
        gradient = gradient / (1 + sigma ** 2)
        step = 1e-2 * sigma * gradient / gradient.norm()
        found.append((loss, (at(x + step)[0] - at(x - step)[0]) / 2, (gradient * step).sum()))
        return x

    c.sample(edited, sampler=Solver(solver))
    (loss, difference, predicted), = found
    assert float(loss) > 0 and float(difference) == pytest.approx(float(predicted), rel=2e-2)


def test_what_cannot_work_is_said_before_the_first_model_call():
    c = case()
    with pytest.raises(ValueError, match="none is named"):
        excite(c.model, words=" ")
    with pytest.raises(ValueError, match="ends at 0"):
        excite(c.model, end=0.0)
    for wrong in ("0: 1.5", "early: 0.5", "2: 0.1"):
        with pytest.raises(ValueError, match="shares of the schedule with levels"):
            excite(c.model, thresholds=wrong)
    with pytest.raises(ValueError, match='"hat" names no word'):
        c.sample(excite(c.model, "hat"))
    with pytest.raises(ValueError, match="carries no words"):
        c.sample(excite(c.model), tiny.encode(c.clip, "a cat on a mat"))
    with pytest.raises(ValueError, match="starts at 0.5 and ends at 0.5"):
        pull(c.model, c.inversion, start=0.5, end=0.5)
    with pytest.raises(ValueError, match="this MODEL is LTXV"):
        excite(joint.ltx_video())
    with pytest.raises(ValueError, match="0 source sentences and 2 target sentences"):
        PalimpsestEditDirection.execute(c.clip, "", CATS, c.source, 1.0)
    with pytest.raises(ValueError, match="would change nothing"):
        PalimpsestEditDirection.execute(c.clip, CATS, DOGS, c.source, 0.0)
    with pytest.raises(ValueError, match=r"is \[8, 64\] \(tokens, width\)"):
        PalimpsestEditDirection.execute(c.clip, CATS, DOGS, tiny.cond(), 1.0)
