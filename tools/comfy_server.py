"""The real ComfyUI server with this checkout as its only custom node, on a loopback port and in a private folder."""
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from environment import WINDOWS, SetupError, child_environment
from pack import NAME, ROOT

FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
LOOPBACK = "127.0.0.1"
# Requests to the loopback address must not go through a proxy that the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port(wanted: int = 0) -> int:
    """The port `wanted` if it is free, or any free port for 0. SetupError if it is in use."""
    with socket.socket() as probe:
        if not WINDOWS:  # on Windows this option would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            raise SetupError(f"port {wanted} is in use: name another with --port, or leave it out for a free "
                             "one") from None
        return probe.getsockname()[1]


def link_pack(place: Path):
    """Make `place` a symlink to this checkout, or on Windows a junction if symlinks need rights."""
    place.unlink(missing_ok=True) if place.is_symlink() else None
    try:
        place.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if not WINDOWS:
            raise
        if not place.exists():
            subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(ROOT)], check=True, stdout=subprocess.DEVNULL)


def options(host: Path, python: Path, base: Path, port: int, alone: bool = True) -> "list[str]":
    """The command line for main.py, without options that this version of the host does not know."""
    known = (host / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    gpu = subprocess.run([python, ROOT / "tools" / "pack.py", "--gpu"], env=child_environment(),
                         cwd=base).returncode == 0
    wanted = [["--base-directory", str(base)], ["--port", str(port)], ["--listen", LOOPBACK], ["--disable-auto-launch"],
              *([["--disable-all-custom-nodes"], ["--whitelist-custom-nodes", NAME]] if alone else []),
              ["--disable-api-nodes"],
              ["--dont-print-server"], ["--database-url", "sqlite:///:memory:"], *([] if gpu else [["--cpu"]])]
    return [word for option in wanted if f'"{option[0]}"' in known for word in option]


def refusal(answer: dict) -> str:
    """The host's refusal of a prompt in one line."""
    details = [f"node {node}: {e['message']} ({e['details']})"
               for node, found in answer.get("node_errors", {}).items() for e in found["errors"]]
    error = answer.get("error", {})
    return "; ".join(details) or f"{error.get('message', answer)} {error.get('details', '')}".strip()


class Server:
    """A running server. It stops when the `with` block ends.

    base: folder for models, input, output and user data.
    port: a free port.
    more: further options of the host.
    log: file for the server's output, None for the terminal.
    alone: whether this checkout is the only pack, or all in `base` are loaded.
    before: called in the new process.
    """

    def __init__(self, host: Path, python: Path, base: Path, port: int, more=(), log: "Path | None" = None,
                 alone: bool = True, before=None):
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        link_pack(base / "custom_nodes" / NAME)
        self.url, self.log = f"http://{LOOPBACK}:{port}", log
        command = [python, host / "main.py", *options(host, python, base, port, alone), *more]
        with open(log or os.devnull, "w") as output:
            out = {"stdout": output, "stderr": subprocess.STDOUT} if log else {}
            self.process = subprocess.Popen(command, cwd=host, env=child_environment(COMFYUI_PATH=str(host)),
                                            preexec_fn=before, **out)

    def __enter__(self):
        try:
            while not self._answers():
                if self.process.poll() is not None:
                    words = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log else []
                    raise SetupError(f"ComfyUI stopped while starting (exit {self.process.returncode})"
                                     + "".join(f": {w}" for w in words) + (f": see {self.log}" if self.log else ""))
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def get(self, path: str) -> bytes:
        with OPENER.open(self.url + path, timeout=30) as answer:
            return answer.read()

    def post(self, path: str, value) -> dict:
        """POST JSON and return the JSON answer. A refusal is returned in the host's own words."""
        request = urllib.request.Request(self.url + path, json.dumps(value).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refusal:
            return json.loads(refusal.read() or b"{}")
