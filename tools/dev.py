#!/usr/bin/env python3
"""Set up Palimpsest and run it. Needs only Python 3.10 or later and a package index.

    python tools/dev.py demo                  edit a picture on a real ComfyUI; the result is in output/demo
    python tools/dev.py test [...]            run the tests; further arguments go to pytest
    python tools/dev.py test --fast           run the first three tests of every file, one case of each: two minutes on
                                              two cores, and something of every technique
    python tools/dev.py check                 check the code with ruff and pyright, as pyproject.toml sets them
    python tools/dev.py serve [--port N] [...]  run ComfyUI with this pack; further arguments go to ComfyUI
    python tools/dev.py train [...]           train the miniature model
    python tools/dev.py bench NAME [...]      run one benchmark
    python tools/dev.py batch WORKFLOW TABLE  run one workflow over a table's rows, on every GPU or core
    python tools/dev.py tool NAME [...]       run one script of tools/, such as locales

--comfyui PATH or COMFYUI_PATH names your own ComfyUI (0.3.64 or later). Without it, a checkout in a ComfyUI's
custom_nodes uses that ComfyUI. Otherwise a private ComfyUI is set up in your cache folder, or in PALIMPSEST_CACHE.
--host-options="--lowvram" passes options of ComfyUI to test, train and bench.
"""
import signal
import sys

if sys.version_info < (3, 10):  # only this file must parse on any Python
    sys.exit("palimpsest: this is Python %d.%d, but 3.10 or later is needed: run `python3.12 tools/dev.py ...`"
             % sys.version_info[:2])

import os
import subprocess
from pathlib import Path

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # the Python of a portable ComfyUI leaves it out
from comfy_server import Server, free_port
from environment import SetupError, cache_folder, child_environment, key, prepare, say
from pack import ROOT

TOOLS = Path(__file__).resolve().parent


def take(arguments, name):
    """Take `name VALUE` or `name=VALUE` out of the arguments. Returns the last value, None if there is none."""
    value = None
    for index in reversed(range(len(arguments))):
        word, _, given = arguments[index].partition("=")
        if word == name:
            del arguments[index]
            if not given and index == len(arguments):
                raise SetupError(name + " needs a value")
            given = given or arguments.pop(index)
            value = value or given
    return value


def run(setup, script, *arguments, folder=ROOT, **variables):
    """Run a script of tools/, or -m and a module, in the environment and a folder. Returns its exit status."""
    program = script if script == "-m" else TOOLS / script
    process = subprocess.Popen([setup.python, program] + list(arguments), cwd=folder,
                               env=child_environment(COMFYUI_PATH=str(setup.host), **variables))
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal interrupts the child too: let it end on its own
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def demo(arguments):
    return run(prepare(), "demo.py", *arguments)


def test(arguments):
    workers = str(min(4, os.cpu_count() or 1))
    modules = ("pytest", "xdist", "diffusers", "peft")
    try:
        setup = prepare(modules, batch=True)
    except SetupError as error:
        say("without the tests of batches: %s" % error)
        setup = prepare(modules)
    return run(setup, "pack.py", "pytest", "--import-mode=importlib", "-n", workers, "--dist", "loadfile",
               "--no-loadscope-reorder", *arguments)  # tests/conftest.py puts the longest files first


def check(arguments):
    setup = prepare(("ruff", "pyright"))
    style = run(setup, "-m", "ruff", "check")
    # pyright searches that Python's paths: torch is there, and PYTHONPATH adds ComfyUI
    types = run(setup, "-m", "pyright", "--pythonpath", setup.python, PYTHONPATH=str(setup.host),
                PYRIGHT_PYTHON_IGNORE_WARNINGS="1")  # about newer versions of pyright
    return style or types


def train(arguments):
    return run(prepare(), "pack.py", "palimpsest.miniature.train", *arguments)


def batch(arguments):
    return run(prepare(("ray", "pyarrow"), batch=True), "pack.py", "palimpsest.batch.command", *arguments,
               folder=os.getcwd())  # paths are the caller's


def named(arguments, kind):
    """The first argument, a script of the folder that its command names. SetupError lists them."""
    folder = {"bench": ROOT / "bench", "tool": TOOLS}[kind]
    names = sorted(p.stem for p in folder.glob("*.py") if p.stem != "dev" and "def main(" in p.read_text("utf-8"))
    if not arguments or arguments[0] not in names:
        raise SetupError(kind + " needs a name, one of: " + ", ".join(names))
    return arguments[0]


def bench(arguments):
    name = named(arguments, "bench")
    spread = any(word.partition("=")[0] == "--workers" for word in arguments)
    modules = ("diffusers",) * (name == "speed") + ("ray",) * (spread or name == "batch")
    return run(prepare(modules, batch="ray" in modules), "pack.py", "palimpsest.bench." + name,
               *arguments[1:])


def tool(arguments):
    name = named(arguments, "tool")
    return run(prepare(), name + ".py", *arguments[1:])


def serve(arguments):
    port = take(arguments, "--port") or "0"
    if not port.isdigit() or int(port) > 65535:
        raise SetupError("--port " + port + " is not a port: give a number from 1 to 65535")
    port = free_port(int(port))
    host, python = prepare()
    base = cache_folder() / ("serve-" + key(str(ROOT)))
    with Server(host, python, base, port, arguments) as server:
        say("ComfyUI with this checkout runs at %s (models and outputs in %s). Ctrl-C ends it." % (server.url, base))
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


COMMANDS = {"demo": demo, "test": test, "check": check, "serve": serve, "train": train, "bench": bench,
            "batch": batch, "tool": tool}


def main(arguments):
    try:
        path = take(arguments, "--comfyui")
        if path:
            os.environ["COMFYUI_PATH"] = path
        options = take(arguments, "--host-options")
        if options:
            os.environ["PALIMPSEST_HOST_OPTIONS"] = options
        if not arguments or arguments[0] not in COMMANDS:
            print(__doc__)
            return 0 if arguments in (["-h"], ["--help"]) else 2
        return COMMANDS[arguments[0]](arguments[1:])
    except SetupError as error:
        sys.stderr.write("palimpsest: %s\n" % error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\npalimpsest: interrupted: run the same command again to continue\n")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
