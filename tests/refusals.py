"""Cases that count their forwards, the editors that refuse them, and what a refusal must say."""
from contextlib import contextmanager
from copy import copy

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.store import PalimpsestAttentionStore
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.inversion.replay import PalimpsestReplay

from runs import Case, kept

WINDOW = torch.ones(1, 64, 64)
INJECT = {"cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "cross_resolution": 1.0,
          "self_resolution": 0.5, "word_weights": "", "word_ends": ""}


@kept
def plain(**kwargs):
    return Case(steps=3, **kwargs)


def counting(**kwargs):
    """A case whose MODEL counts its forwards in `calls`."""
    case = copy(plain(**kwargs))
    case.model, case.calls = counted(case.model)
    return case


def counted(model):
    calls, m = [], model.clone()

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return m, calls


@contextmanager
def refused(calls, *facts):
    """Expects a ValueError whose message has all of these facts, before any forward."""
    before = len(calls)
    with pytest.raises(ValueError) as caught:
        yield
    message = str(caught.value)
    # the error and this frame hold each other, and the host counts a MODEL that waits for the collector as leaked
    del caught
    assert not [fact for fact in facts if fact not in message], message
    assert len(calls) == before


def inject(case, model=None, edit=None, inversion=None, **changed):
    return PalimpsestAttentionInject.execute(model or case.model, inversion or case.inversion, edit or case.edit,
                                             **{**INJECT, **changed}).result[0]


def blend(case, model=None, inversion=None, start=0.2, source_words="", target_words="", threshold=0.3, **inputs):
    return PalimpsestLatentBlend.execute(model or case.model, inversion or case.inversion, start, source_words,
                                         target_words,
                                         threshold, **inputs).result[0]


def store(case, model=None, edit=None, inversion=None):
    return PalimpsestAttentionStore.execute(model or case.model, inversion or case.inversion, edit or case.edit,
                                            0.5).result[0]


@kept
def maps(**kwargs):
    """ATTENTION of a plain case."""
    return store(plain(**kwargs))


def replay(case, model=None, inversion=None, start=0.0, sampler=None):
    return PalimpsestReplay.execute(model or case.model, inversion or case.inversion, start, sampler).result


def window(case, model):
    return blend(case, model, mask=WINDOW)
