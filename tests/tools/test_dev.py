"""The set-up tool: what it reuses, what it detects and what it says. No network."""
import ast
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import palimpsest
import pytest

import dev
import environment
import pack
from comfy_server import free_port
from environment import SetupError, explain, prepare

HOST = pack.find_host()


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without its own ComfyUI, whose pip only records its arguments."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "find_host", lambda: None)
    asked = []

    def make_environment(folder):
        asked.append("venv")
        python = folder / ("Scripts/python.exe" if environment.WINDOWS else "bin/python")
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(environment, "make_environment", make_environment)
    monkeypatch.setattr(environment, "fetch_host", lambda python, tree, scratch: (asked.append("host"), tree.mkdir()))
    monkeypatch.setattr(environment, "pip", lambda python, *arguments, what, scratch: asked.append(arguments))
    return asked


def fake_host(folder, version):
    folder.mkdir(parents=True)
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def light_host(folder, cli_args=""):
    """A host that is imported in no time: what `pack.py` needs of one, and a torch that knows no CUDA."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "options.py").write_text("def enable_args_parsing(): pass\n")
    (folder / "comfy" / "cli_args.py").write_text(cli_args)
    (folder / "nodes.py").touch()
    (folder / "torch.py").write_text("def ones(*shape, device): raise RuntimeError(device)\n")
    return folder


def test_the_pack_has_one_name_whatever_its_folder_is_called(tmp_path):
    host = light_host(tmp_path / "host")
    root = tmp_path / "Palimpsest-main (1)"
    (root / "tools").mkdir(parents=True)
    (root / "nodes").mkdir()
    shutil.copy(pack.__file__, root / "tools")
    (root / "__init__.py").write_text("from .job import main\n")
    (root / "nodes" / "__init__.py").touch()
    (root / "job.py").write_text(
        "import sys\ndef main():\n    import nodes\n    print(__name__, sys.argv, nodes.__file__, "
        "sys.path.count(sys.argv[1]))\n    return 3\n")
    done = subprocess.run([sys.executable, "tools/pack.py", "palimpsest.job", str(root)], cwd=root, text=True,
                          capture_output=True, env=os.environ | {"COMFYUI_PATH": str(host), "PYTHONPATH": str(root)})
    assert done.stdout.splitlines() == [
        f"palimpsest.job {['palimpsest.job', str(root)]} {host / 'nodes.py'} 0"], done.stderr
    assert done.returncode == 3


def test_the_tests_see_the_host_first_and_never_the_packs_root():
    first = next(place for place in sys.path if "ray" not in Path(place).parts)  # Ray puts its own before all
    assert Path(first) == HOST and str(pack.ROOT) not in sys.path
    assert Path(palimpsest.__file__) == pack.ROOT / "__init__.py"


def test_an_own_comfyui_is_found_by_name_or_by_place(tmp_path, monkeypatch):
    own = fake_host(tmp_path / "ComfyUI", "0.30.0")
    inside = own / "custom_nodes" / "any name"
    inside.mkdir(parents=True)
    outside = tmp_path / "checkout"
    outside.mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert pack.find_host(inside) == own
    assert pack.find_host(outside) is None
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "other"))
    assert pack.find_host(inside) == (tmp_path / "other").resolve()
    if not environment.WINDOWS:
        monkeypatch.delenv("COMFYUI_PATH")
        (own / "custom_nodes" / "linked").symlink_to(outside)
        assert pack.find_host(own / "custom_nodes" / "linked") == own


def test_a_second_run_builds_nothing_and_a_changed_requirement_builds_anew(bare, tmp_path, monkeypatch):
    first = prepare()
    assert bare[:2] == ["venv", "host"] and len(bare) == 5
    assert prepare() == first and len(bare) == 5
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(pack.ROOT / "requirements.txt", checkout)
    monkeypatch.setattr(environment, "ROOT", checkout)
    assert prepare() == first, "another checkout with the same requirements shares the environment"
    with open(checkout / "requirements.txt", "a") as requirements:
        requirements.write("lpips==0.1.4\n")
    second = prepare()
    assert second.host == first.host and second.python != first.python
    for pins in ("TORCH", "TESTS"):
        monkeypatch.setattr(environment, pins, ["torch==9.9.9"])
        assert prepare().python not in (first.python, second.python)


def test_ray_is_one_step_more_in_the_same_environment(bare, monkeypatch):
    first = prepare()
    built = len(bare)
    assert prepare(batch=True) == first and bare[built:] == [("install", *environment.BATCH)]
    assert prepare(batch=True) == prepare() == first and len(bare) == built + 1
    monkeypatch.setattr(environment, "BATCH", ["ray[data]==9.9.9"])
    assert prepare(batch=True) == first and bare[-1] == ("install", "ray[data]==9.9.9")


def test_an_environment_whose_python_is_gone_is_built_again(bare):
    prepare().python.unlink()
    del bare[:]
    assert prepare().python.exists()
    assert bare[0] == "venv" and "host" not in bare and len(bare) == 4


def test_an_interrupted_set_up_goes_on_at_the_step_it_was_in(bare, monkeypatch):
    noted = environment.pip

    def cut_off(python, *arguments, what, scratch):
        noted(python, *arguments, what=what, scratch=scratch)
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "pip", cut_off)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert bare == ["venv", "host", ("install", *environment.TORCH)]
    monkeypatch.setattr(environment, "pip", noted)
    prepare()
    assert bare[3] == bare[2] and len(bare) == 6


def test_a_half_unpacked_package_is_installed_again(bare, tmp_path):
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    for name in ("whole-1.dist-info", "half-1.dist-info"):
        (site / name).mkdir(parents=True)
    (site / "whole-1.dist-info" / "INSTALLER").write_text("pip\n")
    environment.install(tmp_path / "python", tmp_path, tmp_path, False, "half", what="half")
    assert [p.name for p in site.iterdir()] == ["whole-1.dist-info"]


def test_two_set_ups_do_not_meet(tmp_path):
    with environment.locked(tmp_path / "lock"), open(tmp_path / "lock", "a+b") as other:
        assert not environment._try_lock(other)
    with open(tmp_path / "lock", "a+b") as other:
        assert environment._try_lock(other)


@pytest.mark.skipif(environment.WINDOWS, reason="POSIX's lock")
def test_a_folder_that_knows_no_locks_is_not_waited_for(tmp_path, monkeypatch):
    """As on some network file systems. No other set-up is running there."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "lock", "a+b") as file, pytest.raises(OSError, match="No locks"):
        environment._try_lock(file)


def test_a_python_without_all_that_comfyui_needs_is_not_its_own(tmp_path, monkeypatch):
    assert environment.own_python(tmp_path, ("pytest",)) == Path(sys.executable)
    monkeypatch.setattr(environment, "HOST_MODULES", ("torch", "no_such_module"))
    assert environment.own_python(tmp_path, ("pytest",)) is None


def test_a_mac_that_torch_is_not_built_for_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    with pytest.raises(SetupError, match="Intel processors: name a ComfyUI of your own with --comfyui PATH"):
        environment.check_python()


def test_no_disk_space_names_the_folder_and_both_numbers(bare, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e9 if folder.exists() else 0))
    monkeypatch.setattr(environment, "GIGABYTES", {"torch": 4.8, "wheels": 2.8})
    with pytest.raises(SetupError, match=r"has 2\.0 GB free, but the set-up needs 7\.6 GB.*PALIMPSEST_CACHE"):
        prepare()
    assert bare == []


def test_without_room_for_both_pip_keeps_no_copies(bare, monkeypatch):
    monkeypatch.setattr(environment, "GIGABYTES", {"torch": 4.8, "wheels": 2.8})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=9e9))
    prepare()
    assert all("--no-cache-dir" in arguments for arguments in bare[2:])


@pytest.mark.parametrize("version, words", [
    ("0.3.63", "ComfyUI 0.3.63 in .* is too old, 0.3.64 or later"), ("0.3.9", "too old"), (None, "no ComfyUI in ")])
def test_a_host_that_will_not_do_is_one_line(version, words, tmp_path, monkeypatch, capsys):
    place = fake_host(tmp_path / "host", version) if version else tmp_path
    monkeypatch.setenv("COMFYUI_PATH", "")
    assert dev.main(["test", "--comfyui", str(place)]) == 1
    said = capsys.readouterr().err
    assert re.search(words, said) and len(said.splitlines()) == 1


def test_pyproject_names_the_requirements_of_the_set_up():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11's")
    project = tomllib.loads((pack.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"] == {
        "tests": environment.TESTS, "benchmarks": environment.BENCHMARKS, "batch": environment.BATCH}
    required = (pack.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project["dependencies"] == [line for line in required if not line.startswith("#")]


@pytest.mark.parametrize("version", ["0.3.64", "0.4.0", "0.30.0", "1.0"])
def test_the_oldest_host_and_later_ones_will_do(version, tmp_path):
    assert environment.host_version(fake_host(tmp_path / "host", version)) == version


def test_a_python_without_wheels_or_without_venv_is_one_line(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 99, 0))
        with pytest.raises(SetupError, match=r"not built for Python 3\.99: run this with Python 3\.10 to 3\.\d+$"):
            environment.check_python()
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
        environment.check_python()


def test_an_older_python_can_read_as_far_as_the_line_that_refuses_it():
    ast.parse(Path(dev.__file__).read_text(), feature_version=(3, 4))


@pytest.mark.parametrize("stderr, words", [
    ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'\nERROR: No matching distribution found "
     "for torch==2.11.0\n", "no network: "),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "no disk space left"),
    ("ERROR: Could not find a version\nERROR: No matching distribution found for torch==2.11.0\n",
     "pip failed on torch for Python .*No matching distribution.*--comfyui PATH"),
    ("", "pip failed on torch")])
def test_what_pip_says_becomes_one_line(stderr, words):
    said = explain(stderr, "torch")
    assert re.match(words, said) and "\n" not in said


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert dev.main(["serve", "--port", str(port)]) == 1
        assert capsys.readouterr().err == (f"palimpsest: port {port} is in use: name another with --port, or leave it "
                                           "out for a free one\n")
        assert free_port() != port


def test_the_check_fails_with_either_of_its_tools(monkeypatch):
    monkeypatch.setattr(dev, "prepare", lambda modules: environment.Setup(HOST, sys.executable))
    for failing in (None, "ruff", "pyright"):
        ran = []
        monkeypatch.setattr(dev, "run", lambda setup, flag, tool, *rest, **variables: ran.append(tool) or
                            int(tool == failing))
        assert bool(dev.main(["check"])) == bool(failing) and ran == ["ruff", "pyright"]


def test_only_the_tools_own_options_are_taken():
    arguments = ["test", "--co", "-k", "a", "--comfyui=one two", "x.py"]
    assert dev.take(arguments, "--comfyui") == "one two"
    assert arguments == ["test", "--co", "-k", "a", "x.py"]
    arguments = ["demo", "--comfyui", "path", "--seed", "3"]
    assert dev.take(arguments, "--comfyui") == "path" and arguments == ["demo", "--seed", "3"]
    with pytest.raises(SetupError, match="--comfyui needs a value"):
        dev.take(["demo", "--comfyui"], "--comfyui")


@pytest.mark.parametrize("command, known", [("bench", "cost"), ("tool", "locales")])
def test_a_name_that_is_not_there_is_answered_with_those_that_are(command, known, capsys):
    assert dev.main([command, "telepathy"]) == 1
    assert f"{command} needs a name, one of: " in (said := capsys.readouterr().err) and known in said


def test_options_of_the_hosts_own_reach_it(tmp_path, monkeypatch):
    monkeypatch.setitem(dev.COMMANDS, "bench", lambda arguments: arguments != ["cost", "--rounds", "1"])
    monkeypatch.setenv("PALIMPSEST_HOST_OPTIONS", "")
    assert dev.main(["bench", "cost", "--host-options=--lowvram --fp16-unet", "--rounds", "1"]) == 0
    host = light_host(tmp_path, "import sys; sys.exit(' '.join(sys.argv))")
    asked = subprocess.run([sys.executable, pack.ROOT / "tools" / "pack.py", "palimpsest.bench.cost"],
                           capture_output=True, text=True,
                           env={**os.environ, "COMFYUI_PATH": str(host)})
    assert asked.stderr.strip().endswith("--use-pytorch-cross-attention --lowvram --fp16-unet"), asked.stderr
