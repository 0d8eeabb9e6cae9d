"""Encoded prompts as files: what is saved is what is loaded, and nothing else is."""
import folder_paths
import pytest
import torch
from palimpsest.host.concept_files import read_file
from palimpsest.host.tokens import encode, tokenize
from palimpsest.inversion.prompt_storage import KEY, load_prompt
from palimpsest.nodes.concept.prompts import PalimpsestLoadConditioning, PalimpsestSaveConditioning
from palimpsest.nodes.inversion.storage import KNOWN
from safetensors.torch import save_file

import tiny
from node_execution import executor  # noqa: F401  runs every test as the host does


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def saved(conditioning, prefix="conditionings/dog"):
    return PalimpsestSaveConditioning.execute(conditioning, prefix).result[0]


def same(a, b):
    """Whether two CONDITIONINGs are equal to the bit."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_a_prompt_is_loaded_as_it_was_saved(output):
    """SDXL's with its pooled text, one in two spans, and one whose words the editors know."""
    clip = tiny.sdxl_clip()
    plain = tiny.encode(clip, "a dog")
    spans = [[rows.half(), {**extras, "start_percent": n / 2, "end_percent": (n + 1) / 2, "guidance": 3.5}]
             for n in range(2) for rows, extras in plain]
    named = encode(clip, (tokenize(clip, "a dog"),))
    assert "palimpsest_tokens" in named[0][1]
    for number, conditioning in enumerate((plain, spans, named), 1):
        file = saved(conditioning)
        assert file == f"conditionings/dog_{number:05}_.prompt.safetensors [output]"
        assert PalimpsestLoadConditioning.validate_inputs(file) is True
        assert same(PalimpsestLoadConditioning.execute(file).result[0], conditioning)


def test_what_no_file_can_hold_is_refused_and_leaves_none(output):
    hooked = [[rows, {**extras, "control": object()}] for rows, extras in tiny.cond()]
    with pytest.raises(ValueError, match=r"holds a object at prompt.0.1.control.*behind Load Conditioning"):
        saved(hooked)
    with pytest.raises(ValueError, match="outside"):
        saved(tiny.cond(), "../dog")
    assert not [path for path in output.rglob("*") if path.is_file()]


@pytest.mark.parametrize("spoil, said", [
    (lambda tensors, about: (tensors, {}), "another kind"),
    (lambda tensors, about: ({"prompt.0.0": tensors["prompt.0.0"] * float("nan")}, about), "another kind"),
    (lambda tensors, about: ({}, about), "another kind"),
    (lambda tensors, about: (tensors, {KEY: about[KEY].replace('"version": 1', '"version": 9')}), "update Palimpsest"),
    (lambda tensors, about: (tensors, {KEY: '{"version": 1, "prompt": []}'}), "another kind")],
    ids=["no notes", "no numbers", "no tensors", "newer", "empty"])
def test_other_files_are_refused(output, spoil, said):
    path = output / saved([[tiny.cond()[0][0], {}]]).removesuffix(" [output]")
    tensors, about = spoil(*read_file(path))
    save_file(tensors, path, metadata=about)
    with pytest.raises(ValueError, match=said):
        load_prompt(path, KNOWN)


def test_a_file_that_is_gone_is_said_before_a_run(output):
    assert "no longer exists" in PalimpsestLoadConditioning.validate_inputs("a.prompt.safetensors [output]")
    assert "choose a file" in PalimpsestLoadConditioning.validate_inputs("a.safetensors [output]")
