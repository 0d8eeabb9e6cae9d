"""A MODEL that nobody holds is freed with its network, whatever ran on it and however the run ended."""
import copy
import gc
import weakref

import comfy.model_management as management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from palimpsest.nodes.attention.store import PalimpsestAttentionStore
from palimpsest.nodes.blending.diffedit import PalimpsestDiffEditMask
from palimpsest.nodes.guidance.delta_denoise import PalimpsestDeltaDenoise
from palimpsest.nodes.guidance.nmg import PalimpsestNoiseMapGuidance
from palimpsest.nodes.guidance.sega import PalimpsestSEGARegions

import runs
import tiny
from editors import EDITORS, FAMILIES, GUIDED, STEPS
from editors.case import store
from every import INVERSIONS
from runs import Case, kept


def noise_map(c):
    return PalimpsestNoiseMapGuidance.execute(c.model, c.inversion, 3.0).result[0]


NODES = {
    "store": lambda c: PalimpsestAttentionStore.execute(c.model, c.inversion, c.edit, 0.25),
    "regions": lambda c: PalimpsestSEGARegions.execute(c.model, c.inversion, c.null, torch.zeros(1, 64, 64, 3)),
    "difference": lambda c: PalimpsestDiffEditMask.execute(c.model, c.source, c.target, {"samples": c.latent}, 2, 0.5,
                                                           0.5, 3.0, 0),
    "delta": lambda c: PalimpsestDeltaDenoise.execute(c.model, c.source, c.target, c.null, {"samples": c.latent}, 3,
                                                      0.1, 7.5, 0.05,
                                                      0.95, 0)}
SAMPLED = {name: lambda c, edit=edit: c.sample(edit(c))
           for name, edit in {**EDITORS, **GUIDED, "noise map": noise_map}.items()}
ONCE = {"DDPM", "CycleDiffusion", "DDCM", "FlowEdit", "LEDITS++", "store", "difference"}  # one forward
each = pytest.mark.parametrize("name, family", [
    (name, FAMILIES[i % len(FAMILIES)]) for i, name in enumerate([*SAMPLED, *INVERSIONS, *NODES])])


@kept
def case(family):
    return Case(family, steps=STEPS)


def on_its_own(name, family):
    """The case on a MODEL that nothing else holds."""
    c = copy.copy(case(family))
    c.model = tiny.UNETS[family]()
    c.model = EDITORS["sega"](c) if name == "regions" else c.model
    return c


def run(c, name):
    with torch.inference_mode():
        {**SAMPLED, **INVERSIONS, **NODES}[name](c)


def stop(c, name):
    """Cancels a run on the case's MODEL in its second forward, when an editor has gathered something."""
    forwards = []

    def hook(*args):
        forwards.append(1)
        if len(forwards) == (1 if name in ONCE else 2):
            raise InterruptProcessingException

    return c.model.model.diffusion_model.register_forward_hook(hook)


@pytest.mark.parametrize("cancelled", [False, True])
@each
def test_a_model_goes_without_the_garbage_collector(name, family, cancelled):
    """Without the garbage collector, which would be too late for a graphics card."""
    c = on_its_own(name, family)
    network = weakref.ref(c.model.model)
    gc.disable()
    try:
        if cancelled:
            stop(c, name)
            with pytest.raises(InterruptProcessingException):
                run(c, name)
        else:
            run(c, name)
        del c
        store.cache_clear()  # the cache of the tests' own editors
        runs._last.clear()
        assert network() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [*INVERSIONS, *NODES])
def test_the_host_knows_a_model_again_after_a_failure(name):
    """The host's executor leaves an exception and its frames to the garbage collector, with all of the MODEL's clones
    in them. If the collector takes a chain of clones at once, the host forgets whose they are. It then reports a
    "memory leak" at every load and never unloads them."""
    c = on_its_own(name, "sd15")
    network = weakref.ref(c.model.model)

    def execute():
        hook = stop(c, name)
        try:
            run(c, name)
        except InterruptProcessingException as error:
            held = error  # noqa: F841  a cycle: this frame, the exception, its frames
        hook.remove()

    execute()
    gc.collect()
    assert not any(loaded.is_dead() for loaded in management.current_loaded_models if loaded.real_model() is network())
