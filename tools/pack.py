"""Load this checkout as the package `palimpsest` beside a real ComfyUI, whatever the checkout's folder is called.

    from pack import load_pack
    load_pack()
    from palimpsest.host import ...

Run as a script it does the same, then calls one module's `main()`: python tools/pack.py palimpsest.bench.NAME [...].
Unlike `python -m` it keeps the pack's root off sys.path.
It uses the standard library only until `load_pack` runs, because the set-up imports it before any environment exists.
"""
import importlib
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "palimpsest"
# On a CPU the host's default attention computes maps in chunks. That is slow to differentiate, and GPUs do not do it.
HOST_OPTIONS = dict.fromkeys(("palimpsest.miniature.train", "palimpsest.bench.cost", "palimpsest.bench.speed"),
                             ["--use-pytorch-cross-attention"])
HOST_OPTIONS["palimpsest.batch.command"] = ["--cpu"]  # its workers have the GPUs


def find_host(here: "Path | None" = None) -> "Path | None":
    """The user's own ComfyUI: the one COMFYUI_PATH names, or the one whose custom_nodes holds the pack."""
    if os.environ.get("COMFYUI_PATH"):
        return Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    here = here or Path(__file__).absolute().parents[1]
    for place in (here, here.resolve()):  # a symlink in custom_nodes counts too
        if place.parent.name == "custom_nodes" and (place.parents[1] / "comfyui_version.py").is_file():
            return place.parents[1]
    return None


def gpu() -> bool:
    """Whether CUDA runs a kernel. torch also finds cards that are too old for its build, which cannot."""
    import torch
    try:
        return bool(torch.ones(1, device="cuda").add(1).item())
    except (AssertionError, RuntimeError):  # built without CUDA; no device, no driver or no kernel
        return False


def load_pack(*options: str):
    """Put the host first on sys.path, parse its options as its main.py does, and return the package.

    options: command-line options of the host, in addition to those in PALIMPSEST_HOST_OPTIONS. `--cpu` is added if no
        CUDA device works.
    """
    if NAME in sys.modules:
        return sys.modules[NAME]
    host = find_host()
    if host is None or not (host / "comfy" / "options.py").is_file():
        raise RuntimeError(f"no ComfyUI {f'in {host}' if host else 'named'}: run `python tools/dev.py test`, or set "
                           "COMFYUI_PATH to a ComfyUI folder")
    # `nodes` is a module of the host and a folder of the pack, so the pack's root must not be on sys.path.
    sys.path[:] = [str(host), *(p for p in sys.path if Path(p).resolve() not in (ROOT, host))]
    cpu = [] if "--cpu" in options or gpu() else ["--cpu"]
    argv, sys.argv = sys.argv, [NAME, *cpu, *options, *os.environ.get("PALIMPSEST_HOST_OPTIONS", "").split()]
    try:
        import comfy.options
        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  reads sys.argv once, at import
    finally:
        sys.argv = argv
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[NAME]
        raise
    return package


def main():
    module = sys.argv.pop(1)
    if module == "--gpu":
        return not gpu()
    sys.argv[0] = module
    if module != "pytest":  # pytest must be imported first to rewrite asserts; tests/conftest.py then loads the pack
        load_pack(*HOST_OPTIONS.get(module, ()))
    return importlib.import_module(module).main()


if __name__ == "__main__":
    sys.exit(main())
