"""docs/api.md, as written: its scripts run in processes of their own, against the real server and without one."""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from palimpsest.miniature import SCENE
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.showcase.drawing import WORDS
from PIL import Image

import api
from comfy_server import Server, free_port
from environment import child_environment, host_version
from pack import ROOT, find_host
from serving import server as registered  # noqa: F401
from workflow import object_info

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- (\w+) -->\n\n```python\n(.*?)```", PAGE, re.DOTALL))
EDIT = held_out_edit(**SCENE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    with Server(find_host(), Path(sys.executable), base, free_port(), log=base / "log") as server:
        yield server


@pytest.fixture
def run(tmp_path):
    """run(block) runs it beside a photo and the workflow at fewer steps: (the process, the edited picture)."""
    graph = json.loads(api.PATH.read_text(encoding="utf-8"))
    graph["inversion"]["inputs"]["steps"] = 10
    (tmp_path / "api.json").write_text(json.dumps(graph))
    Image.fromarray((EDIT.source_image * 255).round().astype(np.uint8)).save(tmp_path / "photo.png")

    def run(block, *arguments):
        script = BLOCKS[block].replace("steps=50", "steps=10")
        found = subprocess.run([sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True,
                               timeout=300, env=child_environment(PALIMPSEST=str(ROOT), COMFYUI_PATH=str(find_host())))
        edited = tmp_path / "edited.png"
        return found, np.asarray(Image.open(edited), np.float32) / 255 if edited.is_file() else None
    return run


def shows_the_edit(picture):
    """Whether its object is nearer to the true edit's than to the source's."""
    source, target = (np.asarray(image, np.float32) for image in (EDIT.source_image, EDIT.target_image))
    changed = np.abs(target - source).max(-1) > 0.1
    return np.abs(picture - target)[changed].mean() < 0.7 * np.abs(picture - source)[changed].mean()


def test_the_file_is_what_the_code_draws(registered):  # noqa: F811
    if not host_version(find_host()).startswith("0.30."):
        pytest.skip("it is drawn with the nodes of ComfyUI 0.30")
    assert api.PATH.read_text(encoding="utf-8") == api.made(object_info())


def test_the_script_edits_a_photo_on_the_server_and_says_how_far_it_is(run, server):
    found, picture = run("script", "photo.png", EDIT.source_text, EDIT.target_text, WORDS, "edited.png", server.url)
    assert found.returncode == 0, found.stderr
    assert "inversion 10 of 10" in found.stdout and "sample 10 of 10" in found.stdout
    assert shows_the_edit(picture)
    assert (np.abs(picture - EDIT.source_image).max(-1) < 0.003).mean() > 0.3
    found, other = run("script", "photo.png", EDIT.source_text, EDIT.source_text, WORDS, "edited.png", server.url)
    assert "inversion" not in found.stdout and "sample 10 of 10" in found.stdout, "the inversion is kept"
    assert np.abs(other - picture).max() > 0.1


def test_a_photo_of_another_shape_comes_back_in_its_own_size_untouched_around_the_edit(run, server, tmp_path):
    wide = Image.open(tmp_path / "photo.png").resize((300, 211), Image.Resampling.BICUBIC)
    wide.save(tmp_path / "photo.png")
    found, picture = run("script", "photo.png", EDIT.source_text, EDIT.target_text, WORDS, "edited.png", server.url)
    assert found.returncode == 0, found.stderr
    assert picture.shape == (211, 300, 3)
    kept = (picture == np.asarray(wide, np.float32) / 255).all(-1)
    assert kept.mean() > 0.3 and kept[:, -60:].all()
    small = Image.fromarray((picture * 255).round().astype(np.uint8)).resize((128, 128), Image.Resampling.BICUBIC)
    assert shows_the_edit(np.asarray(small, np.float32) / 255)


def test_it_ends_with_the_hosts_words_where_a_run_fails_or_is_refused(run, server, tmp_path):
    arguments = "photo.png", EDIT.source_text, EDIT.target_text, "horse", "edited.png", server.url
    found, picture = run("script", *arguments)
    assert found.returncode and '"horse" names no word' in found.stderr and picture is None
    graph = json.loads((tmp_path / "api.json").read_text())
    del graph["sample"]["inputs"]["cfg"]
    (tmp_path / "api.json").write_text(json.dumps(graph))
    found, picture = run("script", *arguments)
    assert found.returncode and "refused" in found.stderr and "cfg" in found.stderr and picture is None


def test_with_a_checkpoint_all_is_known_but_the_file(server):
    script = f"import json, sys\ngraph = json.load(sys.stdin)\n{BLOCKS['checkpoint']}print(json.dumps(graph))"
    graph = json.loads(subprocess.run([sys.executable, "-c", script], input=api.PATH.read_text(encoding="utf-8"),
                                      capture_output=True, text=True, check=True).stdout)
    Image.new("RGB", (8, 8)).save(server.log.parent / "input" / "photo.png")
    refused = server.post("/prompt", {"prompt": graph})["node_errors"]
    assert refused.keys() == {"model"} and [e["type"] for e in refused["model"]["errors"]] == ["value_not_in_list"]


def test_the_plain_calls_edit_a_picture_without_a_server(run):
    found, picture = run("plain", "photo.png", EDIT.source_text, EDIT.target_text, "edited.png")
    assert found.returncode == 0, found.stderr
    assert shows_the_edit(picture)
