"""What the Comfy Registry's specification of pyproject.toml asks for, and what its users download."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from comfy_config.config_parser import extract_node_configuration
from PIL import Image

import comfy_server
import frozen
import workflow
from comfy_server import Server, free_port
from environment import child_environment
from pack import ROOT, find_host

GITHUB = ROOT / ".github"
LEFT_OUT = [line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").split("\n")
            if line and not line.startswith("#")]
UNTRACKED = {".git", "__pycache__", ".pytest_cache", ".ruff_cache", ".venv", "output"}


@pytest.fixture(scope="module")
def config():
    """pyproject.toml as the host reads it, which drops what it cannot read."""
    return extract_node_configuration(str(ROOT))


def test_the_project_is_named_versioned_and_licensed_as_the_registry_asks(config):
    project, comfy = config.project, config.tool_comfy
    assert re.fullmatch(r"[a-z](?:[._-]?[a-z0-9])*", project.name) and len(project.name) < 100
    assert "comfyui" not in project.name and project.description
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version)
    assert f"\n## {project.version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / project.license.file).read_text(encoding="utf-8")
    assert re.fullmatch(r"[a-z0-9-]+", comfy.publisher_id) and comfy.display_name
    assert comfy.includes == [] and comfy.models == [], "git tracks all that is shipped"


def test_it_says_on_what_it_runs(config):
    project = config.project
    assert project.supported_os == ["OS Independent"]
    oldest = re.fullmatch(r">=(\d+\.\d+\.\d+)", project.supported_comfyui_version)[1]
    assert f"ComfyUI ({oldest} or later)" in (ROOT / "README.md").read_text(encoding="utf-8")
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert project.dependencies == [line for line in needed if line and not line.startswith("#")]


@pytest.mark.parametrize("kind", ["Icon", "Banner"])
def test_the_icon_is_a_small_square_and_the_banner_21_to_9(kind, config):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    owner = config.project.urls.repository.removeprefix("https://github.com/")
    place, = re.findall(rf'^{kind} = "https://raw.githubusercontent.com/{owner}/main/(.+)"$', text, re.MULTILINE)
    with Image.open(ROOT / place) as picture:
        assert picture.format in ("PNG", "JPEG", "GIF")
        wide, high = picture.size
    assert (wide == high <= 400) if kind == "Icon" else (wide * 9 == high * 21)
    assert (ROOT / place).stat().st_size < 100_000


def test_every_address_is_the_repositorys(config):
    urls = config.project.urls
    assert re.fullmatch(r"https://github.com/[\w.-]+/[\w.-]+", urls.repository)
    assert urls.issues == f"{urls.repository}/issues"
    start, page = urls.documentation.split("/blob/main/")
    assert start == urls.repository and (ROOT / page).is_file()


def test_the_workflow_hands_a_token_to_the_registrys_own_action():
    flow = yaml.safe_load((GITHUB / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    assert flow[True]["push"] == {"branches": ["main"], "paths": ["pyproject.toml"]}  # YAML reads `on` as true
    publish = flow["jobs"]["publish"]["steps"][-1]
    assert publish["uses"] == "Comfy-Org/publish-node-action@main"
    assert publish["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    assert "steps.version.outputs.new" in publish["if"]


@pytest.mark.skipif(not (shutil.which("git") and shutil.which("bash")), reason="needs git and bash")
@pytest.mark.parametrize("pushed", [1, 2])
@pytest.mark.parametrize("owner, before, published", [("OWNER", "0.1.0", None), ("someone", "0.1.0", True),
                                                      ("someone", "0.2.0", False)])
def test_it_publishes_a_new_version_from_a_known_address_alone(owner, before, published, pushed, tmp_path):
    """Also one that is not in the last commit of a push."""
    flow = yaml.safe_load((GITHUB / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    check, = (step["run"] for step in flow["jobs"]["publish"]["steps"] if step.get("id") == "version")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run([*git, "init", "-q"], check=True)
    for version in before, *["0.2.0"] * pushed:
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n# {owner}\n')
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", version, "--allow-empty"], check=True)
    last = subprocess.run([*git, "rev-parse", f"HEAD~{pushed}"], check=True, capture_output=True, text=True).stdout
    said = tmp_path / "said"
    said.write_text("")
    done = subprocess.run(["bash", "-e", "-c", check], cwd=tmp_path,
                          env=child_environment(GITHUB_OUTPUT=str(said), BEFORE=last.strip()))
    assert (None if done.returncode else said.read_text() == "new=true\n") == published


def test_the_issue_forms_have_what_github_asks_for():
    forms = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        ids = [entry["id"] for entry in form["body"]]
        assert len({*ids}) == len(ids) and all(e["type"] in ("input", "textarea") and e["attributes"]["label"]
                                               for e in form["body"])


def test_nothing_breaks_the_registrys_rules_of_safety():
    """Its client runs these checks: no exec, no eval, one statement a line."""
    ruff = pytest.importorskip("ruff", reason="needs ruff: pip install ruff").find_ruff_bin()
    found = subprocess.run([ruff, "check", ".", "--select", "S102,S307,E702"], cwd=ROOT, capture_output=True, text=True)
    assert not found.returncode, found.stdout


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A copy of what users download."""
    copy = tmp_path_factory.mktemp("shipped") / "pack"

    def left_out(folder, names):
        place = "/" + Path(folder).relative_to(ROOT).as_posix().removeprefix(".")
        return {name for name in names if name in UNTRACKED
                or {f"{place.rstrip('/')}/{name}{end}" for end in ("", "/")} & {*LEFT_OUT}}

    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


def test_users_download_no_tests_or_benches_but_the_miniature(shipped):
    for pattern in LEFT_OUT:  # whole folders and files, anchored at the root
        assert re.fullmatch(r"/[\w./-]+", pattern) and (ROOT / pattern[1:]).is_dir() == pattern.endswith("/")
        assert (ROOT / pattern[1:]).exists() and not (shipped / pattern[1:]).exists()
    assert not {"tests", "bench"} & {path.name for path in shipped.iterdir()}
    assert (shipped / "miniature" / "miniature.safetensors").is_file() and (shipped / "LICENSE").is_file()
    flow = shipped / "miniature" / "flow.safetensors"  # 14 MB at most, by its own test
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file() and path != flow) < 25e6


def test_what_users_download_has_every_node_and_template(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(comfy_server, "ROOT", shipped)
    with Server(find_host(), Path(sys.executable), tmp_path, free_port(), log=tmp_path / "log") as server:
        info = json.loads(server.get("/object_info"))
        assert {name for name in info if name.startswith("Palimpsest")} == frozen.frozen().keys()
        templates = json.loads(server.get("/workflow_templates"))["palimpsest"]
        assert {*templates} == {*workflow.drawings()}


@pytest.mark.parametrize("command", [("demo", "--steps", "2"), ("batch", "--help")], ids=" ".join)
def test_the_commands_of_its_documents_run(shipped, command, tmp_path):
    done = subprocess.run([sys.executable, shipped / "tools" / "dev.py", *command], cwd=tmp_path, text=True,
                          capture_output=True, env=child_environment(COMFYUI_PATH=str(find_host())))
    assert not done.returncode, done.stdout + done.stderr
    assert "sheet.png" in done.stdout or "--out" in done.stdout
