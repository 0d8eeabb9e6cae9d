"""Floors and ceilings of SceneBench: what a perfect sampler may know, and where a row stands between them."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from palimpsest.bench import floors, scenes, summary
from palimpsest.miniature.hard import hard_edit
from palimpsest.miniature.looks import Looks
from palimpsest.miniature.scenes import EDIT_KINDS, covered, held_out_edit, render, visible

SEVERAL = range(6)
SETS = pytest.mark.parametrize("draw", [held_out_edit, hard_edit])


def apart(a, b):
    return float(np.abs(a - b).max())


FACTS = "x", "y", "r", "rot", "phase"


@SETS
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_another_picture_has_the_targets_words_and_none_of_its_facts(kind, draw):
    for n in SEVERAL:
        edit = draw(n, kind)
        scene, target = floors.another_scene(edit, n), edit.target
        assert scene.caption() == edit.target_text and visible(scene) == visible(target)
        assert scene.seed != target.seed and len(scene.objs) == len(target.objs)
        assert all(getattr(a, fact) != getattr(b, fact) for a, b in zip(scene.objs, target.objs) for fact in FACTS)
        assert scene == floors.another_scene(edit, n) != floors.another_scene(edit, n + 1)
        assert not scene.light and not scene.spot and all(o.looks == Looks() for o in scene.objs)


@SETS
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_a_perfect_sampler_keeps_what_the_source_shows(kind, draw):
    """Outside the true mask the picture is the source's, to the bit."""
    for n in SEVERAL:
        edit = draw(n, kind)
        made, same = floors.identifiable(edit, n), edit.mask == 0
        if kind == "add":  # the new object may lie elsewhere in its half
            same = np.zeros_like(same)
            same[covered(edit.source.objs[0]) > 0] = True
        elif kind == "material":  # the new pattern may have another phase
            same = (render(replace(edit.source, objs=())) == edit.source_image).all(-1)
            assert 0.5 < same.mean() < 1
        assert np.array_equal(made[same], edit.source_image[same])


@pytest.mark.parametrize("kind, hides", [("colour", False), ("style", False), ("add", True), ("background", True),
                                         ("delete", True), ("object", True), ("pose", True)])
def test_a_perfect_sampler_draws_anew_what_the_source_hides_and_no_more(kind, hides):
    for n in SEVERAL:
        edit = held_out_edit(n, kind)
        assert (apart(floors.identifiable(edit, n), edit.target_image) > 1e-3) == hides, n


def test_behind_an_object_that_goes_lies_ground_of_its_kind():
    """And the rest of the picture is the exact target's."""
    edit = held_out_edit(0, "delete")
    gone = covered(next(o for o in edit.source.objs if o not in edit.target.objs)) > 0
    made = floors.identifiable(edit, 0)
    assert np.array_equal(made[~gone], edit.target_image[~gone]) and apart(made[gone], edit.target_image[gone]) > 1e-3
    assert visible(edit.target)["ground"] == edit.source.ground


def test_a_new_object_alone_is_the_targets_on_other_ground():
    edit = hard_edit(0, "add")
    scene, place = floors.alone(edit), covered(*[o for o in edit.target.objs if o not in edit.source.objs]) > 0
    inside, outside = (np.abs(render(scene) - edit.target_image)[p].mean() for p in (place, ~place))
    assert len(scene.objs) == 1 and inside < 0.01 < 0.03 < outside  # edges show some ground


def test_a_row_stands_between_fresh_noise_and_the_perfect_sampler():
    rows = {"fresh noise": 10.0, "identifiable": 30.0, "another picture": 15.0}
    found = {f"{scenes.NOBODY}, {name}": {"kinds": {"add": {"target_psnr": low}, "pose": {"target_psnr": low + 4}}}
             for name, low in rows.items()}
    assert [summary.of_the_way(found, name) for name in found] == ["0%", "100%", "25%"]
    del found[f"{scenes.NOBODY}, another picture"]["kinds"]["add"]  # a row that is not for additions
    assert summary.of_the_way(found, f"{scenes.NOBODY}, another picture") == "25%"


def test_a_ghost_nears_the_target_with_its_share():
    made = scenes.Scenes(scenes.load_miniature(), scenes.SPLITS["hard-public"].edits("colour", range(2)))
    with torch.inference_mode():
        known = scenes.Known.of(made)
        drawn = floors.ghosts(made, known.truth)
    far = [float((ghost - known.truth).square().mean()) for ghost in drawn.values()]
    assert far == sorted(far, reverse=True) and far[0] > 3 * far[-1] and list(drawn) == list(floors.GHOSTS)
