"""Inversions saved to and loaded from the host's folders."""
import dataclasses
import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from latent_preview import Latent2RGBPreviewer
from palimpsest.editing.inverting import invert
from palimpsest.editing.replay import replay
from palimpsest.host.sampling import Fingerprint
from palimpsest.host.tokens import encode, tokenize_rows
from palimpsest.inversion.storage import KEY, load, save
from palimpsest.inversion.trajectory import Theta
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.inversion.storage import KNOWN, PalimpsestLoadInversion, PalimpsestSaveInversion
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from node_execution import executor  # noqa: F401
from pack import ROOT
from saving import (
    folders,  # noqa: F401
    loaded,
    same,
    saved,
)

STEPS = 3


@pytest.fixture(scope="module")
def model():
    return tiny.sd15()


@pytest.fixture(scope="module")
def inversion(model):
    """An inversion of a prompt from Prompt Edit, with something learned."""
    with torch.inference_mode():
        clip = tiny.clip()
        source = encode(clip, tokenize_rows(clip, ["a photo of a (cat:1.2)"]))
        source[0][1]["guidance"] = 3.5
        latent = {"samples": model.model.process_latent_out(tiny.latent(model, 2))}
        made = PalimpsestDDIMInvert.execute(model, source, latent, STEPS, "ddim_uniform").result[0]
        learned = made.conditioning[0][0].expand(STEPS, -1, -1, -1)[:, :1]  # shares its memory with the source
        return dataclasses.replace(made, method="Null-Text", theta={"uncond": Theta(learned, "step", "prediction")})


def refused(file, message):
    """By the check before the workflow runs, and by the node itself."""
    assert isinstance(PalimpsestLoadInversion.validate_inputs(file), str)
    for call in (PalimpsestLoadInversion.execute, PalimpsestLoadInversion.fingerprint_inputs):
        with pytest.raises(ValueError, match=message):
            call(file)


def digest(tensors):
    return sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def test_everything_comes_back_to_the_bit(folders, inversion):
    file = saved(inversion)
    assert file == "cats/tabby_00001_.inversion.safetensors [output]"
    found = loaded(file)
    for field in dataclasses.fields(inversion):
        if not field.name.startswith("_"):
            assert same(getattr(found, field.name), getattr(inversion, field.name)), field.name
    assert found.tokens[0].find("cat").text == "cat" and isinstance(found.fingerprint, Fingerprint)
    assert type(found.provenance) is type(found.settings) is type(inversion.settings)


def test_a_file_from_before_words_had_names_is_read(folders, inversion):
    path = folders[0] / saved(inversion).removesuffix(" [output]")
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for tokens in (record["inversion"]["conditioning"][0][1]["dict"]["palimpsest_tokens"]["tuple"]):
        del tokens["Tokens"]["named"]
    save_file(tensors, path, metadata={KEY: json.dumps({**of_version_2(record), "version": 1})})
    found = load(path, KNOWN)
    assert found.tokens == inversion.tokens and found.tokens[0].named == inversion.tokens[0].words


def test_a_learned_only_inversion_without_a_trajectory_comes_back(folders, inversion):
    found = loaded(saved(dataclasses.replace(inversion, latents=None)))
    assert found.latents is None and same(found.theta, inversion.theta)


def test_a_new_process_reads_the_same_bytes_without_the_host(folders, inversion):
    path = folders[0] / saved(inversion).removesuffix(" [output]")
    code = f"""
import importlib.util, sys
from dataclasses import make_dataclass
from hashlib import sha256
spec = importlib.util.spec_from_file_location("inversion", {str(ROOT / "inversion" / "__init__.py")!r},
                                              submodule_search_locations=[{str(ROOT / "inversion")!r}])
sys.modules["inversion"] = importlib.util.module_from_spec(spec)
from inversion.storage import load
known = [make_dataclass(n, f.split()) for n, f in [
    ("Fingerprint", "model latent_format channels prediction weights sigma_data context_width pooled_width"),
    ("Tokens", "text ids weights words named streams"), ("Word", "text positions")]]
found = load({str(path)!r}, known)
tensors = [found.sigmas, *found.latents, found.conditioning[0][0], found.theta["uncond"].tensor]
print(sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest(), "comfy" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [inversion.sigmas, *inversion.latents, inversion.conditioning[0][0], inversion.theta["uncond"].tensor]
    assert result.stdout.split() == [digest(expected), "False"]


def test_a_loaded_inversion_is_replayed_to_the_same_bytes(folders, model, inversion):
    def sampled(inversion):
        m, solver, sigmas, latent = PalimpsestReplay.execute(model, inversion, 0.0).result
        found = SamplerCustom.execute(m, False, 5, 3.0, tiny.cond(), tiny.cond(seed=9), solver, sigmas, latent)
        return found.result[0]["samples"]
    assert torch.equal(sampled(loaded(saved(inversion))), sampled(inversion))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what is mapped")
def test_latents_are_mapped_from_the_file(folders, inversion):
    """Each tensor lies at an address that the system has mapped from the file, so a long trajectory takes no
    memory before it is read."""
    file = saved(inversion)
    latents = loaded(file).latents
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    path = str(folders[0] / file.removesuffix(" [output]"))
    mapped = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] == path]
    assert all(any(low <= t.data_ptr() < high for low, high in mapped) for t in latents)


def test_nothing_is_overwritten_and_the_size_is_shown(folders, inversion):
    first = PalimpsestSaveInversion.execute(inversion, "cats/tabby")
    second = PalimpsestSaveInversion.execute(inversion, "cats/tabby")
    assert second.result[0] == "cats/tabby_00002_.inversion.safetensors [output]"
    assert first.ui["text"][0] == f"{first.result[0]}, 0.1 MiB"
    assert sorted(p.name for p in (folders[0] / "cats").iterdir()) == [
        "tabby_00001_.inversion.safetensors", "tabby_00002_.inversion.safetensors"]


@pytest.mark.parametrize("prefix", ["", " ", "cats/", "cats/.", "./", "x/%year%/"])
def test_nothing_is_overwritten_whatever_the_prefix_ends_in(folders, inversion, prefix):
    files = [PalimpsestSaveInversion.execute(inversion, prefix).result[0] for _ in range(2)]
    assert len({*files}) == 2 and all(not Path(file).name.startswith(".") for file in files)
    assert len([*folders[0].rglob("*.safetensors")]) == 2


@pytest.mark.parametrize("family", [*tiny.UNETS, *tiny.FLOWS])
def test_both_nodes_show_the_picture_as_the_hosts_preview_does(folders, family):
    model = (tiny.UNETS | tiny.FLOWS)[family]()
    latent = {"samples": model.model.process_latent_out(tiny.latent(model, 2))}
    made = PalimpsestDDIMInvert.execute(model, tiny.cond(), latent, STEPS, "ddim_uniform").result[0]
    kind = model.model.latent_format
    host = Latent2RGBPreviewer(kind.latent_rgb_factors, kind.latent_rgb_factors_bias)
    stored = PalimpsestSaveInversion.execute(made, "thumbnail")
    for ui in (stored.ui, PalimpsestLoadInversion.execute(stored.result[0]).ui):
        assert len(ui["images"]) == 2
        for image, clean in zip(ui["images"], made.latents[-1]):
            path = Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"])
            expected = host.decode_latent_to_preview(clean[None]).resize((128, 128), Image.Resampling.NEAREST)
            difference = np.abs(np.asarray(Image.open(path), dtype=int)[..., :3] - np.asarray(expected, dtype=int))
            assert difference.max() <= 1


def test_the_picker_lists_the_inversions_of_both_folders_and_nothing_else(folders, inversion):
    file = saved(inversion)
    source = folders[0] / file.removesuffix(" [output]")
    (folders[1] / "mine.inversion.safetensors").write_bytes(source.read_bytes())
    (folders[0] / "lora.safetensors").write_bytes(b"x")
    node = PalimpsestLoadInversion.GET_NODE_INFO_V1()
    options = node["input"]["required"]["file"][1]["options"]
    assert sorted(options) == sorted([file, "mine.inversion.safetensors [input]"])
    assert same(loaded("mine.inversion.safetensors [input]").latents, inversion.latents)


def test_a_changed_file_is_read_again(folders, inversion):
    file = saved(inversion)
    before = PalimpsestLoadInversion.fingerprint_inputs(file)
    assert before == PalimpsestLoadInversion.fingerprint_inputs(file)
    save(folders[0] / file.removesuffix(" [output]"), dataclasses.replace(inversion, method="Fixed Point"), KNOWN)
    assert PalimpsestLoadInversion.fingerprint_inputs(file) != before


@pytest.mark.parametrize("file", [
    "../secret.inversion.safetensors [output]", "a/../../secret.inversion.safetensors [output]",
    "{outside}/secret.inversion.safetensors [output]", "link.inversion.safetensors [output]",
    "out/secret.inversion.safetensors [input]"])
def test_no_path_outside_the_folders_is_read(folders, inversion, file):
    outside = folders[0].parent
    save(outside / "secret.inversion.safetensors", inversion, KNOWN)
    (folders[0] / "link.inversion.safetensors").symlink_to(outside / "secret.inversion.safetensors")
    (folders[1] / "out").symlink_to(outside)
    refused(file.format(outside=outside), "outside .*put, the only folder")


@pytest.mark.parametrize("file, message", [
    ("a.inversion.safetensors", "not an inversion in the output or input"),
    ("a.inversion.safetensors [temp]", "not an inversion in"),
    ("lora.safetensors [output]", "not an inversion in"), ("a\0.inversion.safetensors [output]", "not an inversion in"),
    ("gone.inversion.safetensors [output]", "no longer exists")])
def test_other_names_are_refused(folders, file, message):
    refused(file, message)


@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "{outside}/x", "link/x"])
def test_no_path_outside_the_output_folder_is_written(folders, inversion, prefix):
    outside = folders[0].parent
    (outside / "elsewhere").mkdir()
    (folders[0] / "link").symlink_to(outside / "elsewhere")
    before = sorted(outside.rglob("*"))
    with pytest.raises(ValueError, match="outside .*output, the only folder"):
        saved(inversion, prefix.format(outside=outside))
    assert sorted(outside.rglob("*")) == before


def test_truncated_foreign_and_newer_files_are_told_apart(folders, inversion):
    path = folders[0] / "x.inversion.safetensors"
    save(path, inversion, KNOWN)
    whole = path.read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"x.inversion.safetensors \({size} bytes\).*truncated"):
            load(path, KNOWN)
    save_file({"lora": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="1 tensors without an INVERSION"):
        load(path, KNOWN)
    save_file({"x": torch.ones(2)}, path, metadata={KEY: json.dumps({"version": 4, "inversion": "unknown"})})
    with pytest.raises(ValueError, match="format 4, this version of Palimpsest reads up to 3: update"):
        load(path, KNOWN)
    for strange in ("{", "[]", '{"version": 1, "inversion": {"sigmas": {"tensor": "absent"}}}',
                    '{"version": 1, "inversion": {"sigmas": {"Popen": {"args": "true"}}}}',
                    '{"version": 1, "inversion": {"sigmas": {"a": 1, "b": 2}}}'):
        save_file({"x": torch.ones(2)}, path, metadata={KEY: strange})
        with pytest.raises(ValueError, match="cannot be read as an INVERSION"):
            load(path, KNOWN)


@pytest.mark.parametrize("held", [object(), {"control": object()}, [torch.nn.Linear(1, 1)], float("nan")])
def test_what_is_no_plain_value_is_refused_and_leaves_no_file(folders, inversion, held):
    conditioning = [[inversion.conditioning[0][0], {**inversion.conditioning[0][1], "extra": held}]]
    with pytest.raises(ValueError, match=r"(object|Linear|float) at conditioning\.0\.1\.extra.*cannot keep"):
        saved(dataclasses.replace(inversion, conditioning=conditioning))
    assert not [p for p in folders[0].rglob("*") if p.is_file()]


def of_version_2(record):
    """A file's record in the second format."""
    held = record["inversion"]
    held["provenance"]["dict"].update(held.pop("settings")["dict"])
    return {**record, "version": 2}


def of_before(record):
    """A file's record in the first format."""
    fingerprint = record["inversion"]["fingerprint"]["Fingerprint"]
    for name in ("sigma_data", "context_width", "pooled_width"):
        del fingerprint[name]
    return {**of_version_2(record), "version": 1}


def parts(path):
    """(record, tensors) of a file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY]), {name: file.get_tensor(name) for name in file.keys()}


def rewritten(path, record, tensors):
    save_file(tensors, path, metadata={KEY: record if isinstance(record, str) else json.dumps(record)})


def test_a_file_of_before_the_widths_is_read_and_replayed(folders, model, inversion):
    file = saved(inversion)
    path = folders[0] / file.removesuffix(" [output]")
    record, tensors = parts(path)
    rewritten(path, of_before(record), tensors)
    found = loaded(file)
    assert (found.fingerprint.context_width, found.fingerprint.sigma_data) == (None, 1.0)
    assert inversion.fingerprint.context_width == tiny.DIM
    PalimpsestReplay.execute(model, found, 0.0)


@pytest.mark.parametrize("method, settings", [
    ("EDICT", {"p": 0.9}), ("BDIA", {"gamma": 0.9}), ("Direct", {"cfg": 3.0}), ("DDPM", {"eta": 0.5, "cfg": 3.0}),
    ("CycleDiffusion", {"eta": 0.3}), ("LEDITS++", {}), ("ReNoise Ancestral", {"eta": 0.7})])
def test_a_file_with_settings_among_the_provenance_loads_and_samples_the_same(folders, model, method, settings, said):
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    made = invert(method, model, tiny.cond(), latent, STEPS, negative=tiny.cond(seed=9), **settings).inversion
    file = saved(made)
    path = folders[0] / file.removesuffix(" [output]")
    record, tensors = parts(path)
    old = of_version_2(record)
    assert "settings" not in old["inversion"] and old["inversion"]["provenance"]["dict"].keys() >= made.settings.keys()
    rewritten(path, old, tensors)
    found = loaded(file)
    assert same(found.settings, made.settings) and same(found.provenance, made.provenance)
    pictures, warnings = [], []
    for inversion in (made, found):
        m, *start = replay(model, inversion)
        sampled = SamplerCustom.execute(m, False, 5, 2.0, tiny.cond(seed=2), tiny.cond(seed=8), *start)
        pictures.append(sampled.result[0]["samples"])
        warnings.append(said())
    assert torch.equal(*pictures) and warnings[0] == warnings[1]


STRANGE = [None, -1, float("nan"), "EDICT", "CLIP", [], {}, {"tensor": "sigmas"}, {"tuple": [1]},
           {"dict": {"control": "x"}},
           {"Word": {"text": 1}}]
SAMPLED = 16  # one in so many of the readable ones is sampled too


def mutations(value, put):
    """Every record in which one place of this value holds one of STRANGE, and every record that lacks a place."""
    for strange in STRANGE:
        yield put(strange)
    if isinstance(value, dict):
        for key in value:
            yield put({k: v for k, v in value.items() if k != key})
            yield put({k + "s" if k == key else k: v for k, v in value.items()})
            yield from mutations(value[key], lambda v: put({**value, key: v}))
    elif isinstance(value, list):
        if value:
            yield put(value[1:])
            yield from mutations(value[0], lambda v: put([v, *value[1:]]))


def test_a_changed_file_is_refused_in_words_or_replayed(folders, model, inversion):
    """One place of the metadata changes. Load Inversion then refuses the file with two facts and the remedy. Or it
    gives an INVERSION that can be shown and sampled, or that is refused where the model is known."""
    file = saved(inversion)
    path = folders[0] / file.removesuffix(" [output]")
    record, tensors = parts(path)
    outcomes = {"read": 0, "refused": 0}
    for changed in mutations(record, lambda v: v):
        rewritten(path, changed, tensors)
        try:
            found = PalimpsestLoadInversion.execute(file).result[0]
            outcomes["read"] += 1
            m, solver, sigmas, latent = PalimpsestReplay.execute(model, found, 0.0).result
            if outcomes["read"] % SAMPLED == 0:
                SamplerCustom.execute(m, False, 5, 3.0, tiny.cond(77), tiny.cond(77, seed=9), solver, sigmas, latent)
        except ValueError as error:
            assert re.search("invert again|[Cc]onnect|remove|update Palimpsest", str(error)), (error, changed)
            outcomes["refused"] += 1
    assert outcomes["read"] > 50 and outcomes["refused"] > 400, outcomes


def test_crafted_records_are_refused_in_words(folders, inversion):
    file = saved(inversion)
    path = folders[0] / file.removesuffix(" [output]")
    record, tensors = parts(path)
    deep = '{"version": 3, "inversion": ' + '{"sigmas":' * 100000 + "1" + "}" * 100001
    nested = '{"tuple": [' * 2000 + "1" + "]}" * 2000
    shallow = json.dumps(record).replace('"provenance": {', f'"provenance": {nested}, "x": {{')
    for text in (deep, shallow, '{"version": 1' + "0" * 5000 + "}"):
        rewritten(path, text, tensors)
        with pytest.raises(ValueError, match=r"tabby_00001_.inversion.safetensors \(\d+ bytes\) cannot be read.*invert "
                                             r"again"):
            loaded(file)


@pytest.mark.parametrize("method, fact", [
    ("DDIM", "DDIM writes nothing, this holds uncond"), ("KV", "KV writes content., this holds uncond"),
    ("EDICT", "EDICT notes its p as a number, this is None"), ("Direct", "Direct writes offset, this holds uncond"),
    ("Negative Prompt", r"Negative Prompt writes 1 of it, by run"),
    ("Telepathy", "made by Telepathy.*knows BDIA.*DDIM")])
def test_a_relabelled_method_is_refused(folders, inversion, method, fact):
    file = saved(dataclasses.replace(inversion, method=method))
    with pytest.raises(ValueError, match=f"{fact}.*invert again"):
        PalimpsestLoadInversion.execute(file)


def test_a_name_that_the_system_refuses(folders, inversion):
    with pytest.raises(ValueError, match=r"a name of 329 bytes\) cannot be written to .*too long.*give a shorter name"):
        saved(inversion, "cats/" + "x" * 300)
    assert not [p for p in folders[0].rglob("*") if p.is_file()]
