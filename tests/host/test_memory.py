"""The pack allocates no attention map. Runs of a 32 × 32 latent record every tensor that any operation makes."""
from functools import cache, partial

import pytest
import torch
from comfy.ldm.modules.attention import attention_basic, attention_pytorch
from palimpsest.attention import cross_image, reflex
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.store import PalimpsestAttentionStore

from editors import CONCEPTS, EDITORS
from largest import Largest
from runs import Case

HEADS = 2
# of latents whose map is larger than the parts of it that are held at once, and of those for editors that act or look
# on coarser grids, whose maps of a smaller latent are smaller than what plain sampling makes
SIZES = dict.fromkeys(("cross image", "free prompt", "mixing", "excite", "pull", "guide", "remove", "mid-step features",
                       "mid-step words"), 64)
LONG = " in front of a very small house on a green hill far away" * 7  # two chunks of tokens


def everywhere(case, model=None, weights="cat: 3", ends="cat: 0.5"):
    """Self- and cross-attention at every resolution, with both calls of cross-attention."""
    return PalimpsestAttentionInject.execute(model or case.model, case.inversion, case.edit, 0.0, 1.0, 0.0, 1.0, 1.0,
                                             1.0,
                                             weights, ends).result[0]


@cache
def case(size=32):
    return Case(source="a red cat on a mat" + LONG, targets=("a blue cat on a mat" + LONG,), size=size, steps=2)


def through(backend, model):
    """The MODEL with its attention computed by one of the host's functions."""
    m = model.clone()
    options = m.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda function, *args, **kwargs: backend(*args, **kwargs)
    return m


def largest(run, *args, **kwargs):
    with torch.inference_mode(), Largest() as seen:
        run(*args, **kwargs)
    return seen.numel


@cache
def plain(size=32):
    """The largest tensor in plain sampling of one row."""
    return largest(case(size).sample, through(attention_pytorch, case(size).model), cfg=1.0)


def test_a_map_would_be_larger_than_anything_plain_sampling_makes():
    """Sizes of self-attention's map at the latent's own resolution and of cross-attention's for this prompt. The
    recorder finds one that is made."""
    tokens = len(case().edit.pairs[0].target.ids)
    assert min(HEADS * 32 ** 4, HEADS * 32 ** 2 * tokens) > plain()
    assert HEADS * 64 ** 4 > max(plain(64), cross_image.CELLS, reflex.CELLS)
    model = everywhere(case())
    assert largest(case().sample, through(attention_basic, model), cfg=1.0) == HEADS * 32 ** 4
    assert largest(case().sample, through(attention_pytorch, model), cfg=1.0) < HEADS * 32 ** 2 * tokens


def needed(editor):
    """What an editor may hold at once if its paper reads maps: parts of them (contrast), or cross-attention's of all
    grids (a loss)."""
    tokens = len(case().edit.pairs[0].target.ids)
    return {"cross image": cross_image.CELLS, "mid-step features": reflex.CELLS, "mid-step words": reflex.CELLS,
            "pull": HEADS * 64 ** 2 * tokens}.get(editor, 0)


@pytest.mark.parametrize("editor", {**EDITORS, "everywhere": everywhere})
def test_an_edited_run_makes_nothing_larger_than_plain_sampling(editor):
    """At one row per forward, the reference's included. Concepts share the target's forward,
    so there it is their rows."""
    rows, size = CONCEPTS[editor] + 2 if editor in CONCEPTS else 1, SIZES.get(editor, 32)
    c = case(size)
    edited = {**EDITORS, "everywhere": everywhere}[editor](c, through(attention_pytorch, c.model))
    assert largest(c.sample, edited, cfg=1.0) <= max(rows * plain(size), needed(editor))


def test_word_maps_of_a_picture_are_made_without_maps():
    model = through(attention_pytorch, case().model)
    assert largest(partial(PalimpsestAttentionStore.execute, model, case().inversion, case().edit, 1.0)) <= plain()
