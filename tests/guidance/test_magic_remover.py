"""MagicRemover changes only the removed place, and takes a gradient only where it would move."""
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover

import tiny
from cases import case_of
from moving_latents import case
from runs import relative


def test_a_remover_takes_a_gradient_only_where_it_would_move():
    """Twice per step in the first half of the schedule and once after it. Never at scale 0, without words, or for a
    prompt without the words."""
    c = case(steps=4)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :32] = 1

    def gradients(words, scale, prompt):
        taken, model = [], PalimpsestMagicRemover.execute(c.model, c.inversion, words, 0.3, scale, 0.0, 1.0,
                                                          mask=mask).result[0]
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", lambda executor, x, *args, **kwargs: (
            taken.append(1) if x.requires_grad else None) or executor(x, *args, **kwargs))
        c.sample(model, prompt)
        return len(taken)

    half = c.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert gradients("cat", 1.0, c.source) == sum(2 if sigma >= half else 1 for sigma in c.sigmas[:-1].tolist()) > 4
    sky = case(steps=4, targets=("the sky",)).target
    for words, scale, prompt in (("cat", 0.0, c.source), ("", 1.0, c.source), ("cat", 1.0, sky),
                                 ("cat", 1.0, tiny.encode(c.clip, "the sky"))):
        assert gradients(words, scale, prompt) == 0, (words, scale)


def remove(c, **given):
    settings = {"words": "cat", "threshold": 0.3, "scale": 5.0, "start": 0.0, "end": 1.0, "mask": corner(c)} | given
    return PalimpsestMagicRemover.execute(c.model, c.inversion,
                                          *(settings.pop(n) for n in ("words", "threshold", "scale", "start", "end")),
                                          **settings).result[0]


def corner(c):
    mask = torch.zeros(1, *(8 * n for n in c.latent.shape[-2:]))
    mask[:, :32, :32] = 1
    return mask


def test_the_removed_place_changes_alone_and_words_move_it():
    c = case_of()
    found, filled, gone = (c.sample(remove(c, **given), positive=c.source)
                           for given in ({}, {"scale": 0.0}, {"words": ""}))
    for x in (found, filled):
        torch.testing.assert_close(x[..., 4:, :], c.latent[..., 4:, :], rtol=0, atol=1e-5)
    assert torch.equal(filled, gone)
    assert relative(found, filled) > 1e-3 < relative(filled, c.sample(c.model, positive=c.source))


def test_what_magic_remover_cannot_do_is_said():
    c = case_of()
    for given, message in (({"mask": None}, "neither MASK nor ATTENTION"), ({"end": 0.0}, "starts at 0 and ends at 0"),
                           ({"words": "dog"}, '"dog" names no word')):
        with pytest.raises(ValueError, match=message):
            remove(c, **given)
