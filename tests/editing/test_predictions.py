"""Predictions that editors ask for in addition to the host's: of which prompt, under which
ControlNets, and how often."""
from dataclasses import dataclass, field

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from palimpsest.editing.editor import Editor
from palimpsest.editing.predictions import Asked
from palimpsest.editing.run import attach

import tiny
from cases import case_of
from control_nets import plainly
from runs import relative


@dataclass(frozen=True, eq=False)
class Asking(Editor):
    """Asks for the prediction of its own prompt, the null prompt or the target, and records the answers.

    of: "own", "null" or "target".
    weight: how much of the answer is mixed into the target's prediction.
    answers: (σ, the run's x0 of the target, the x0 that it asked for) of every answer.
    """
    of: str
    beside: str = "target"
    end: float = 1.0
    prompt: list | None = None
    weight: float | None = None
    answers: list = field(default_factory=list)
    name = "Asking"

    @property
    def prompts(self):
        return () if self.prompt is None else (self.prompt,)

    @property
    def mixes(self):
        return self.weight is not None

    def asks(self, run, sigma):
        if not run.within(sigma, 0.0, self.end):
            return {}
        return {"other": Asked(run.prompts(self)[0] if self.of == "own" else self.of, self.beside)}

    def answered(self, run, x0, sigma):
        found = x0["other"].clone() if x0.names else None
        self.answers.append((sigma, x0.target.clone(), found))
        return torch.lerp(x0.target, found, self.weight) if self.mixes and x0.names else x0.target


def run_of(c, *asking, cfg=7.5, pag=False, **prompts):
    """(result, [(σ, [(first uuid of each list, whether it has a ControlNet)])] of each call of the host's network)."""
    calls, model = [], c.model
    for editor in asking:
        model = attach(model, editor)
    if pag:
        model = PerturbedAttentionGuidance.execute(model, 3.0).result[0]

    def called(executor, inner, conds, x, timestep, options):
        calls.append((float(timestep[0]), [(entries[0]["uuid"], any("control" in e for e in entries))
                                           for entries in conds if entries is not None]))
        return executor(inner, conds, x, timestep, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "noted", called)
    return c.sample(model, prompts.get("positive"), cfg, negative=prompts.get("negative")), calls


def own(c, **kwargs):
    return Asking("own", prompt=tiny.encode(c.clip, "a hat"), **kwargs)


def sizes(calls):
    return [len(lists) for _, lists in calls]


def test_what_is_asked_is_one_list_more_and_changes_nothing():
    c = case_of()
    editor = own(c)
    found, calls = run_of(c, editor)
    plain, bare = run_of(c)
    assert sizes(calls) == [3] * len(bare) and sizes(bare) == [2] * len(bare)
    assert relative(found, plain) < 6e-6  # with AVX2 alone more rows are multiplied in other parts, 5e-6 apart
    assert [sigma for sigma, *_ in editor.answers] == [sigma for sigma, _ in bare]


def test_an_answer_is_that_prompts_prediction():
    """At the latents of one run the target's own prediction equals the host's, and another prompt's does not."""
    c = case_of()
    again, null, hat = Asking("target"), Asking("null"), own(c)
    run_of(c, again, null, hat)
    assert all(relative(found, target) < 1e-5 for _, target, found in again.answers)
    assert all(relative(editor.answers[0][2], editor.answers[0][1]) > 1e-4 for editor in (null, hat))
    as_target = own(c)
    run_of(c, as_target, positive=as_target.prompt)
    assert all(relative(found, target) < 1e-5 for _, target, found in as_target.answers)
    as_null = Asking("null")
    run_of(c, as_null, positive=c.null)
    assert all(relative(found, target) < 1e-5 for _, target, found in as_null.answers)


@pytest.mark.parametrize("beside, controlled", [("target", True), ("null", False)])
def test_what_is_asked_is_under_the_control_nets_of_the_list_beside_it(beside, controlled):
    """Conditioned on the target alone: the null prompt is predicted once more only beside the target."""
    c = case_of()
    positive, negative = advanced(c)
    for of, lists in (("own", 3), ("null", 3 if controlled else 2)):
        editor = own(c, beside=beside) if of == "own" else Asking("null", beside)
        _, calls = run_of(c, editor, positive=positive, negative=negative)
        assert sizes(calls) == [lists] * len(calls)
        for _, found in calls:
            by_host, added = [control for _, control in found[:2]], [control for _, control in found[2:]]
            assert sorted(by_host) == [False, True] and added == [controlled] * (lists - 2)


def advanced(c):
    """(positive, negative). Only the positive has a ControlNet."""
    (embedding, extras), = plainly(c)[0]
    return [[embedding, {**extras, "control_apply_to_uncond": False}]], c.null


def test_of_equal_control_nets_the_null_prompt_is_not_evaluated_again():
    c = case_of()
    for positive, negative in ((c.target, c.null), plainly(c)):
        editor = Asking("null")
        _, calls = run_of(c, editor, positive=positive, negative=negative)
        assert sizes(calls) == [2] * len(calls) and len(editor.answers) == len(calls)


@pytest.mark.parametrize("of, beside, lists", [("own", "target", 2), ("own", "null", 3), ("null", "target", 2)])
def test_at_cfg_1_the_null_prompt_is_evaluated_where_it_is_wanted(of, beside, lists):
    """Once for all editors, and equal to the prediction in a guided run."""
    c = case_of()
    editors = [own(c, beside=beside) if of == "own" else Asking("null", beside) for _ in range(2)]
    found, calls = run_of(c, *editors, cfg=1.0)
    assert sizes(calls) == [lists + (of == "own")] * len(calls)
    assert relative(found, run_of(c, cfg=1.0)[0]) < 1e-5
    if of == "null":
        guided = Asking("null")
        run_of(c, guided)
        assert relative(editors[0].answers[0][2], guided.answers[0][2]) < 1e-5


def test_nothing_is_evaluated_where_an_editor_asks_for_nothing():
    c = case_of()
    editor = own(c, end=0.5)
    _, calls = run_of(c, editor)
    limit = c.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert sizes(calls) == [3 if sigma >= limit else 2 for sigma, _ in calls] and {*sizes(calls)} == {2, 3}
    assert [found is not None for *_, found in editor.answers] == [size == 3 for size in sizes(calls)]


def test_editors_are_asked_once_an_evaluation_and_those_that_mix_in_every_call():
    """Perturbed-Attention Guidance calls the network for the target once more."""
    c = case_of()
    editor = own(c)
    _, calls = run_of(c, editor, pag=True)
    assert sizes(calls) == [3, 1] * (len(calls) // 2) and len(editor.answers) == len(calls) // 2
    mixing = Asking("target", weight=0.0)
    _, calls = run_of(c, mixing, pag=True)
    assert sizes(calls) == [3, 2] * (len(calls) // 2) and len(mixing.answers) == len(calls)


def test_what_an_editor_mixes_is_the_targets_prediction():
    """With all of another prompt's prediction, a run equals a run of that prompt."""
    c = case_of()
    editor = own(c, weight=1.0)
    wanted = c.sample(c.model, editor.prompt)
    assert relative(run_of(c, editor)[0], wanted) < 1e-5 < 1e-3 < relative(run_of(c, own(c, weight=0.5))[0], wanted)
