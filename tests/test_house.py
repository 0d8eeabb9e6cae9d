"""The table of rooms, held against every import of every file, and the requirements."""
import ast
import sys
from pathlib import Path

from pack import ROOT

PAPERS = (".attention.", ".guidance.", ".blending.", ".inversion.", ".concept.")
VALUES = ".inversion.trajectory", ".inversion.grid"
EDITOR = {".host", ".editing", *VALUES, "torch", "tqdm"}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes"}
PARTS = {".attention", ".guidance", ".blending", ".concept", ".inversion"}
BELOW = {*PARTS, ".editing", ".miniature", ".host", ".metrics"}  # nodes
# What the files of a room may import in addition to Python's own modules. A dot marks the pack's modules.
ROOMS = {
    "": {".nodes", ".host", "comfy_api"},
    "showcase": {".nodes", *BELOW, "torch"},
    "nodes": {*BELOW, "torch", "torchvision", "numpy", "PIL", *COMFYUI},
    "attention": EDITOR,
    "guidance": EDITOR,
    "blending": EDITOR,
    "concept": EDITOR,
    "editing": {".editing", ".host", *VALUES, ".inversion.method", ".metrics", "torch"},
    "inversion": {"torch", "tqdm", "safetensors"},
    "miniature": {".miniature", ".host", "torch", "numpy", "PIL", "safetensors", "comfy"},
    "host": {".host", "torch", "safetensors", *COMFYUI},
    "metrics": {".metrics", "torch", "numpy", "PIL"},
}
OUTSIDE = {"tests", "batch", "bench", "tools"}  # these may import anything
# The files in a room of papers that are not papers. Papers may import them, and they may import papers.
SHARED = {".attention.alignment", ".attention.maps", ".inversion.grid", ".inversion.method",
          ".inversion.pivotal_tuning", ".inversion.prompt_storage", ".inversion.storage", ".inversion.trajectory"}
# The one paper that a paper may import.
PARENTS = {".guidance.ledits": ".guidance.sega", ".inversion.cycle_diffusion": ".inversion.ddpm",
           ".inversion.flow.fireflow": ".inversion.flow.rf_solver", ".inversion.flow.flow_edit": ".inversion.ddcm",
           ".inversion.regularized": ".inversion.ddim"}


def module(path: Path) -> str:
    """`.inversion.edict`, or `.inversion` for its `__init__.py`."""
    return "".join(f".{part}" for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


FILES = {module(path): path for path in sorted(ROOT.rglob("*.py"))
         if path.relative_to(ROOT).parts[0] not in OUTSIDE and "/." not in path.relative_to(ROOT).as_posix()}
TECHNIQUES = [name for name, path in FILES.items()
              if name.startswith(PAPERS) and path.stem != "__init__" and name not in SHARED]


def imported(name: str) -> set:
    """Every name that a module imports, anywhere in its file: `torch.nn`, `.host.tokens.encode`."""
    path, names = FILES[name], set()
    package = (name if path.stem == "__init__" else name.rpartition(".")[0]).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            base += [node.module] if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def allowed(name: str) -> set:
    """What a module may import in addition to Python's own modules."""
    room = name.split(".")[1] if name else ""
    below = ROOMS[room] | sys.stdlib_module_names
    if name in TECHNIQUES:
        return below | {shared for shared in SHARED if shared.startswith(f".{room}.")} | {PARENTS.get(name, name)}
    return below | {f".{room}"}


def test_imports_point_down_the_table_of_rooms():
    wrong = [f"{name or 'the pack'} imports {other}" for name in FILES for other in sorted(imported(name))
             if not any(f"{other}.".startswith(f"{one}.") for one in allowed(name))]
    assert not wrong, "\n".join(wrong)


def test_no_parent_is_declared_that_no_paper_imports():
    assert all(any(name.startswith(parent) for name in imported(child)) for child, parent in PARENTS.items())


def test_requirements_name_what_the_pack_imports():
    names = {name.partition(".")[0] for module in FILES for name in imported(module)}
    libraries = {{"PIL": "pillow"}.get(name, name) for name in names - COMFYUI - sys.stdlib_module_names - {""}}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(libraries)
