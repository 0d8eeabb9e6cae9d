"""Files of runs that may go on, as nodes write and read them. What they hold is tested in test_learning.py."""
import json
from dataclasses import replace

import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from palimpsest.editing import run_files
from palimpsest.editing.learner import Learner
from palimpsest.nodes.concept.learn import PalimpsestLearnConcept, PalimpsestSaveConcept
from palimpsest.nodes.concept.lora import PalimpsestLearnLoRA
from palimpsest.nodes.concept.words import PalimpsestLoadConcept
from safetensors.torch import save_file

import tiny
from concepts import images
from node_execution import executor  # noqa: F401


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def learned():
    """learned(steps, concept, save_every, look_every) gives a CONCEPT of the same run."""
    model, clip = tiny.sd15(), tiny.clip()
    given, trained = images(model), PalimpsestLearnLoRA.execute(1e-2, 2, 0.0, "attention", False).result[0]
    return lambda steps, concept=None, save_every=0, look_every=0: PalimpsestLearnConcept.execute(
        model, clip, given, trained, steps, 1, 0, None, concept, save_every, look_every).result[2]


def runs(output) -> list:
    return sorted(path.name for path in (output / "concepts").glob("*"))


def test_a_saved_concept_goes_on_after_a_restart(learned, output):
    files = PalimpsestSaveConcept.execute(learned(1), "mine", "fp16", True).result[0].split("\n")
    assert files == ["loras/mine_00001_.safetensors", "concepts/mine_00001_.run.safetensors"]
    file, = PalimpsestLoadConcept.define_schema().inputs[0].options
    assert file == f"{files[1]} [output]" and PalimpsestLoadConcept.validate_inputs(file) is True
    on, whole = learned(1, PalimpsestLoadConcept.execute(file).result[0]), learned(2)
    assert on.losses == whole.losses and all(torch.equal(on.weights[name], v) for name, v in whole.weights.items())


@pytest.mark.parametrize("save_every", [1, 2, 9])
def test_a_cancelled_run_goes_on_from_its_last_step(save_every, learned, output, monkeypatch):
    """It is cancelled in the middle of the fourth, which has drawn its noise. What a step needs was measured before."""
    differentiate, taken = Learner.differentiate, []

    def stop(self, rows):
        if len(taken) == 4:
            raise InterruptProcessingException
        taken.append(1)
        return differentiate(self, rows)

    with monkeypatch.context() as patch, pytest.raises(InterruptProcessingException):
        patch.setattr(Learner, "differentiate", stop)
        learned(9, save_every=save_every)
    assert runs(output) == ["learned-3-steps_00001_.run.safetensors"]
    on = learned(1, PalimpsestLoadConcept.execute(f"concepts/{runs(output)[0]} [output]").result[0])
    assert on.losses == learned(4).losses


def test_a_concept_without_a_run_does_not_go_on(learned, output):
    with pytest.raises(ValueError, match="2 steps holds nothing to go on from.*switch resume off"):
        PalimpsestSaveConcept.execute(replace(learned(2), state=None), "mine", "fp16", True)
    assert runs(output) == []


def test_a_watched_run_saves_what_it_may_go_on_from(learned, output):
    """The last step's, not the average's, which the LoRA beside it holds."""
    learned(3, save_every=2, look_every=1)
    on = learned(1, PalimpsestLoadConcept.execute(f"concepts/{runs(output)[0]} [output]").result[0], look_every=1)
    assert on.losses == learned(3).losses and [look.step for look in on.state["watch"]["looks"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("about, said", [
    ({}, "1 tensors and 0 notes, which make no whole run"),
    ({run_files.KEY: json.dumps({"version": 1})}, "make no whole run"),
    ({run_files.KEY: json.dumps({"version": 9})}, "version 9, this pack reads up to 1: update the pack")])
def test_a_file_that_is_no_run_says_so(about, said, tmp_path):
    save_file({"theta.0": torch.zeros(2)}, tmp_path / "a.run.safetensors", about)
    with pytest.raises(ValueError, match=said):
        run_files.load_run(tmp_path / "a.run.safetensors")


def test_a_run_that_lacks_a_moment_is_no_whole_one(learned, tmp_path):
    tensors, about = run_files.run_file(learned(1))
    del tensors["moments.0.exp_avg"]
    save_file(tensors, tmp_path / "a.run.safetensors", about)
    with pytest.raises(ValueError, match="make no whole run"):
        run_files.load_run(tmp_path / "a.run.safetensors")


def test_a_full_disk_ends_no_run(learned, output, monkeypatch, caplog):
    def full(*args):
        raise ValueError("it cannot be written")

    monkeypatch.setattr("palimpsest.nodes.concept.learn.write", full)
    assert len(learned(2, save_every=1).losses) == 2
    assert caplog.text.count("cannot be saved (it cannot be written), and learning goes on") == 2
