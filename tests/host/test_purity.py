"""A run leaves nothing behind, whether it ends, is cancelled or fails: the same MODEL then samples the same bytes."""
import gc
import weakref
from contextlib import nullcontext
from dataclasses import is_dataclass

import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from palimpsest.editing.editor import editors
from palimpsest.editing.run import Run
from palimpsest.host.keys import RUN
from palimpsest.host.unet import host_attention
from palimpsest.nodes.attention.store import PalimpsestAttentionStore

from editors import BARE, EDITORS, READS, STEPS, each, each_in_turn
from joint import JOINT
from runs import Case, kept


@kept
def case(family):
    return Case(family, steps=STEPS)


@kept
def edited(editor, family):
    """The one MODEL that a cached node hands to every run."""
    return EDITORS[editor](case(family))


def shape_of(value):
    """The contents of a container down to its leaves, which are compared by identity."""
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)) and not hasattr(value, "_fields"):
        return type(value).__name__, [shape_of(v) for v in value]
    return id(value)


def state(model):
    """Everything in a MODEL that a run could change."""
    parts = (model.model_options, model.wrappers, model.callbacks, model.injections, model.attachments, model.patches,
             model.object_patches, model.additional_models, model.hook_patches)
    hooks = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.model.named_modules()]
    attributes = {name: sorted(m.__dict__) for name, m in model.model.named_modules()}
    return [shape_of(p) for p in parts], hooks, attributes


def inputs(case):
    """Copies of the values that the nodes of a run share."""
    inversion = case.inversion
    tensors = [*inversion.latents, inversion.sigmas, case.noise, case.sigmas, case.latent]
    for conditioning in (case.source, case.target, case.null, inversion.conditioning):
        for cross, extra in conditioning:
            tensors += [cross, *(v for _, v in sorted(extra.items()) if isinstance(v, torch.Tensor))]
    tensors += [t for pair in (case.edit.pairs if case.edit else ()) for t in (pair.mapper, pair.kept)]
    keys = [sorted(extra) for c in (case.source, case.target, case.null) for _, extra in c]
    return [t.clone() for t in tensors], keys


def equal(a, b):
    return a[1] == b[1] and all(map(torch.equal, a[0], b[0])) and len(a[0]) == len(b[0])


@kept
def sampled_first(family):
    """What the unedited MODEL sampled before any test."""
    return case(family).sample(sampler="dpmpp_2m")


@pytest.fixture
def unchanged():
    """Checks, after the test's runs, that MODELs, weights and values are unchanged and sample the same bytes."""
    checks = []

    def watch(case, *models):
        weights = {k: v.clone() for k, v in case.model.model.state_dict().items()}
        before = [(case.model, sampled_first(case.family), state(case.model)),
                  *((m, case.sample(m, sampler="dpmpp_2m"), state(m)) for m in models)]
        checks.append((case, weights, inputs(case), before))

    yield watch
    assert checks
    for case, weights, values, before in checks:
        for model, sampled, held in before:
            assert state(model) == held
            assert torch.equal(case.sample(model, sampler="dpmpp_2m"), sampled)
            assert state(model) == held
        assert equal(inputs(case), values)
        found = case.model.model.state_dict()
        assert found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in weights)


def tensors_of(*values):
    """The tensors in containers and in editors' states."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(*value)
        elif isinstance(value, dict):
            yield from tensors_of(*value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            yield from tensors_of(vars(value))


class Trail:
    """Weak references to what runs of `model`, a clone, collect: the Run, its reference, kept features and states."""

    def __init__(self, model):
        self.model, self.tensors, self.objects = model.clone(), {}, {}
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "trail", lambda *args, **kw: self._apply(*args, **kw))

    def _apply(self, executor, *args, **kwargs):
        x0 = executor(*args, **kwargs)
        if x0.requires_grad or RUN not in args[5]:  # a forward of an editor's own
            return x0
        run = args[5][RUN]
        encoded = [c for entries in run.reference.entries for e in entries for c in e["model_conds"].values()]
        for value in (run, run.reference, *encoded):
            self.objects[id(value)] = weakref.ref(value)
        for t in tensors_of([shown.features for shown in run.reference.kept.values()], run._states):
            self.tensors[id(t)] = weakref.ref(t)
        return x0

    def alive(self):
        return [r() for r in (*self.tensors.values(), *self.objects.values()) if r() is not None]


@each_in_turn(2, joint=JOINT)
def test_the_same_bytes_again_whatever_was_sampled_between(editor, family, unchanged):
    """The same edited MODEL, as from a cached node, and an equal new one, as from a node that runs again."""
    c, model = case(family), edited(editor, family)
    other = edited("mutual" if editor == "blend" else "blend", family)
    unchanged(c, model)
    first = c.sample(model, sampler="dpmpp_2m_sde", seed=5)
    assert torch.equal(c.sample(model, sampler="dpmpp_2m_sde", seed=5), first)
    assert not torch.equal(c.sample(other, sampler="dpmpp_2m_sde", seed=5), first)
    assert torch.equal(c.sample(model, sampler="dpmpp_2m_sde", seed=5), first)
    assert torch.equal(c.sample(EDITORS[editor](c), sampler="dpmpp_2m_sde", seed=5), first)


@each
def test_attaching_an_editor_changes_no_other_model(editor, family):
    c = case(family)
    base, chained = state(c.model), EDITORS["blend"](c)
    before = state(chained)
    model = EDITORS[editor](c, chained)
    assert len(editors(model)) > len(editors(chained)) == 1 and editors(c.model) == ()
    assert state(c.model) == base and state(chained) == before


@each_in_turn(0, joint=JOINT)
def test_what_a_run_gathers_dies_with_it(editor, family):
    """Without waiting for the garbage collector, which would be too late for a graphics card."""
    c, trail = case(family), Trail(edited(editor, family))
    gc.collect()
    gc.disable()
    try:
        c.sample(trail.model)
        assert not trail.alive()
    finally:
        gc.enable()
    assert len(trail.objects) > 1 and bool(trail.tensors) == (editor not in BARE)


@pytest.mark.parametrize("editor", sorted(READS))
def test_kept_features_live_for_one_sigma(editor):
    c, trail = case("sd15"), Trail(edited(editor, "sd15"))
    most = []

    def count(step, x0, x, total):
        most.append(sum(r() is not None for r in trail.tensors.values()))

    c.sample(trail.model, callback=count)
    assert most[0] > most[-1] and len(trail.tensors) > most[0]


class Broken(RuntimeError):
    """An error in another pack's patch."""


def cancel_at(reached):
    def hook(value, total, preview, node_id=None):
        if value == reached:
            raise InterruptProcessingException()
    return hook


def cancelled(step):
    """The host cancels from its progress hook, in the sampler's callback."""
    def run(case, model):
        comfy.utils.set_progress_bar_global_hook(cancel_at(step + 1))
        bar = comfy.utils.ProgressBar(STEPS)
        try:
            case.sample(model, callback=lambda i, x0, x, total: bar.update_absolute(i + 1, total))
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
    return run


def broken(step, source=False):
    """Another pack's patch raises at a step, while the target or the source is read."""
    def run(case, model):
        def breaks(options):
            if RUN not in options:
                return False
            sampled = options["sample_sigmas"].tolist().index(float(options["sigmas"][0]))
            sources = {e["uuid"] for entries in options[RUN].reference.entries for e in entries}
            return sampled == step and (not source or sources & set(options["uuids"]))

        def patch(q, k, v, options):
            if not q.requires_grad and options["block"][0] == "output" and breaks(options):
                raise Broken()  # not in a forward for an editor's gradient
            return host_attention(q, k, v, options)

        def override(func, *args, **kwargs):
            if breaks(kwargs["transformer_options"]):
                raise Broken()
            return func(*args, **kwargs)

        model = model.clone()
        if case.family in JOINT:
            model.model_options["transformer_options"]["optimized_attention_override"] = override
        for number in range(len(getattr(model.model.diffusion_model, "output_blocks", ()))):
            model.set_model_attn2_replace(patch, "output", number)
        case.sample(model)
    return run


ENDS = {"cancelled at the first step": cancelled(0), "cancelled at the last": cancelled(STEPS - 1),
        "broken in the source": broken(1, source=True),
        "broken at the last": broken(STEPS - 1)}


@each_in_turn(1, joint=JOINT)
def test_a_cancelled_or_failed_run_leaves_nothing(editor, family, unchanged):
    c = case(family)
    unchanged(c, edited(editor, family))
    for end, run in ENDS.items():
        trail, read = Trail(edited(editor, family)), editor in READS or end != "broken in the source"
        with pytest.raises((InterruptProcessingException, Broken)) if read else nullcontext() as caught:
            run(c, trail.model)
        runs = [r for r in trail.alive() if isinstance(r, Run)]
        # even while the traceback holds the run
        assert all(not r._states and not r.reference.kept for r in runs), end
        assert trail.objects, end
        del caught, runs
        gc.collect()
        assert not trail.alive(), end


@pytest.mark.parametrize("end", ["whole", "cancelled"])
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_reading_a_pictures_maps_leaves_nothing(family, end, unchanged):
    c = case(family)
    unchanged(c)

    def read():
        with torch.inference_mode():
            return PalimpsestAttentionStore.execute(c.model, c.inversion, c.edit, 0.5).result[0].maps

    maps = read()
    if end == "cancelled":
        comfy.utils.set_progress_bar_global_hook(cancel_at(STEPS))
        try:
            with pytest.raises(InterruptProcessingException):
                read()
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
    assert torch.equal(read(), maps)
