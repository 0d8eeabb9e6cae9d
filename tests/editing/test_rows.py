"""Another pack's window over the batch: each call shows the model some of the rows and does not say which."""
import pytest
import torch
from comfy.patcher_extension import WrappersMP

import tiny
from editors.attention.masactrl import mutual, mutual_words
from editors.attention.p2p import inject
from runs import Case, kept, relative


def windowed(model, size):
    """Like AnimateDiff-Evolved's context options: parts of the batch one after the other."""
    def parts(executor, model, conds, x, timestep, options):
        found = [executor(model, conds, *part, options) for part in zip(x.split(size), timestep.split(size))]
        return [torch.cat(x0) for x0 in zip(*found)]

    m = model.clone()
    m.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "window", parts)
    return m


@kept
def case(pictures=1, targets=("a blue cat on a mat",)):
    return Case(targets=targets, latent=tiny.latent(tiny.sd15(), pictures), steps=3)


@pytest.mark.parametrize("size", [2, 3])
def test_one_picture_and_prompt_serve_any_part_of_the_rows(size):
    c = case()
    start = c.apart.repeat(4, 1, 1, 1) * torch.tensor([1.0, 0.9, 1.1, 1.05]).view(4, 1, 1, 1)
    for edit in (inject, mutual):
        parts, whole = (c.sample(m, latent=start) for m in (edit(c, windowed(c.model, size)), edit(c)))
        assert relative(parts, whole) < 1e-5


MANY = {"pictures": (4, ("a blue cat on a mat",), mutual, "4 pictures of the INVERSION"),
        "prompts": (1, ("a blue cat on a mat", "a red dog on a mat"), inject, "2 target prompts"),
        "masks": (2, ("a blue cat on a mat",), mutual_words, "2 pictures of the INVERSION")}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("what", MANY)
def test_several_are_refused_there(what, size):
    pictures, targets, edit, said = MANY[what]
    c = case(pictures, targets)
    with pytest.raises(ValueError, match=f"{size} of the latent's 4 rows.*{said}.*remove it"):
        c.sample(edit(c, windowed(c.model, size)), latent=c.noise.repeat(4 // pictures, 1, 1, 1))
