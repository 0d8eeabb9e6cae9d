"""Rows on Ray: one actor a GPU or core, which gets the rows of a group one after another.

Ray starts the processes, places them on a cluster, carries rows and results and says who died and of what. Ray Data
would do more, but a row that kills its process takes its whole block with it there, and what the block held is lost.
"""
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import ray
from ray._private import ray_constants

from pack import ROOT, find_host

TRIES = 2  # of a row that ends its worker, or finds no memory
CLOSING = 5.0  # seconds for workers to clean up
JOINING = 900.0  # seconds for a cluster's first machine
STARTS = 3  # of workers, one after another, that end before their first row


class NoWorkers(RuntimeError):
    """Workers end before they have done anything."""


@dataclass(frozen=True)
class Options:
    """address: of a Ray cluster, or "" for a Ray of this machine alone.
    workers: how many, 0 for one a GPU, or one a core where there is none.
    gpus: of each worker, where the cluster has some.
    recycle: bytes that a worker may grow by before another takes its place.
    """
    address: str = ""
    workers: int = 0
    gpus: float = 1.0
    recycle: float = 4e9


@dataclass(eq=False)
class Item:
    """A row's work. tries: how often it was sent. losses: how many workers it ended. small: how often it found no
    memory."""
    job: object
    tries: int = 0
    losses: int = 0
    small: int = 0


@dataclass(eq=False)
class Seat:
    """A worker's place.

    rows: of its group, still to do.
    ref, item: what it does now. It has one row at a time, so that a row is known which ends it; a new worker's first
        call is its start, with no item.
    sent: pictures that came with the last row. base: bytes that the worker held after its first row.
    """
    number: int
    actor: object = None
    process: int = 0
    small: bool = False
    leaving: bool = False
    base: float = 0.0
    sent: set = field(default_factory=set)
    rows: deque = field(default_factory=deque)
    ref: object = None
    item: "Item | None" = None


def connect(options: Options) -> tuple[int, float, float]:
    """Start or join Ray. Returns (workers, cores a worker, GPUs a worker)."""
    if not ray.is_initialized():
        place = {"address": options.address}
        if not options.address:
            ray_constants.ENABLE_RAY_CLUSTER = False  # Ray then listens on the loopback address alone
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            place = {"address": "local", "include_dashboard": False, "object_store_memory": 512 * 2 ** 20}
        ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None  # `cause` says in a line what this does
        ended = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**place, log_to_driver=False, logging_level="error", namespace="palimpsest")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise NoWorkers(f"no Ray can be used at {options.address or 'this machine'}: {error} (a cluster that asks "
                            "for a token gets it where RAY_AUTH_MODE is token, from RAY_AUTH_TOKEN or "
                            "~/.ray/auth_token)") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ended)  # in place of Ray's own, which ends the process with a dump
    cores, gpus = joined(options.address)
    share = options.gpus if gpus else 0
    # a worker has its share of one GPU, or its GPUs on one machine
    has = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]] if share else []
    fits = sum(number * int(1 / share + 1e-9) if share < 1 else int(number / share) for number in has)
    workers = options.workers or (fits if share else cores)
    if not workers:
        raise NoWorkers(f"Ray sees {cores} cores and {gpus:g} GPUs: start machines that have some")
    if share and workers > fits:
        raise NoWorkers(f"{workers} workers of {share:g} GPUs each need {workers * share:g}, Ray sees {gpus:g} "
                        f"with room for {fits} of them: ask for fewer workers, or a smaller --gpus-per-worker")
    if not share and workers > cores:
        raise NoWorkers(f"{workers} workers need as many cores, Ray sees {cores}: ask for fewer")
    return workers, 1 if share else max(1, cores // workers), share


def joined(address) -> tuple[int, float]:
    """(cores, GPUs) that Ray sees. A cluster's head often has neither, and its machines come minutes after it."""
    until = time.monotonic() + JOINING * bool(address)
    while True:
        has = ray.cluster_resources()
        cores, gpus = int(has.get("CPU", 0)), has.get("GPU", 0)
        if cores or gpus or time.monotonic() >= until:
            return cores, gpus
        print("palimpsest: waits for the cluster's machines", file=sys.stderr, flush=True)
        time.sleep(10)


def actor_class():
    class Worker:  # in a function, so that Ray sends it by value: a new process has no pack until load_pack ran
        def __init__(self, made, settings, options):
            from pack import NAME, gpu, load_pack
            module, _, name = made.partition(":")
            if module.startswith(f"{NAME}."):
                load_pack(*options if gpu() else ())
            self.work = getattr(import_module(module), name)(**settings)

        def ready(self):
            return os.getpid()

        def run(self, *args):
            return self.work(*args)

        def close(self):
            getattr(self.work, "close", int)()

    return ray.remote(Worker)


class Engine:
    """made: "module:name" of what a worker makes once, from `settings`, and then calls with every row's arguments. It
    returns a dict, which may hold `exception`, `error` and `memory`.

    args(Item, Seat): a row's arguments, asked for just before it is sent.
    done(Item, found), lost(Item, cause): a row is done, or given up.
    tell(Seat, words): what became of a worker.
    """

    def __init__(self, made, settings, options: Options, args, done, lost, tell=lambda seat, words: None):
        self.made, self.settings, self.options = made, settings, options
        self.args, self.done, self.lost, self.tell = args, done, lost, tell
        self.workers, self.cores, self.gpus = connect(options)
        self.seats, self.stillborn = [], 0
        self.kind = actor_class().options(num_cpus=self.cores, num_gpus=self.gpus, scheduling_strategy="SPREAD",
                                          runtime_env={"env_vars": environment(self.cores)})

    def run(self, groups: list):
        """groups: lists of jobs."""
        self.waiting = deque(deque(map(Item, group)) for group in groups)
        self.seats = [Seat(n + 1) for n in range(min(self.workers, len(self.waiting)))]
        try:
            for seat in self.seats:
                self._start(seat)
            while self._left() and (busy := {seat.ref: seat for seat in self.seats if seat.ref}):
                for ref in ray.wait(list(busy), timeout=1)[0]:
                    self._landed(busy[ref])
        finally:
            ray.wait([seat.actor.close.remote() for seat in self.seats], num_returns=len(self.seats), timeout=CLOSING)
            for seat in self.seats:
                ray.kill(seat.actor)

    def _left(self) -> bool:
        """Whether rows are left. A worker that Ray finds no room for is not waited for once none are."""
        return bool(self.waiting) or any(seat.item or seat.rows for seat in self.seats)

    def _start(self, seat):
        seat.actor = self.kind.remote(self.made, self.settings, ["--lowvram"] if seat.small else [])
        seat.process, seat.base, seat.leaving, seat.sent = 0, 0.0, False, set()
        seat.ref, seat.item = seat.actor.ready.remote(), None

    def _feed(self, seat):
        """Give a worker its next row, if there is one."""
        seat.ref = seat.item = None
        while seat.rows or self.waiting:
            if seat.leaving:
                ray.wait([seat.actor.close.remote()], timeout=CLOSING)
                ray.kill(seat.actor)
                self._start(seat)
                return
            seat.rows = seat.rows or self.waiting.popleft()
            item = seat.rows.popleft()
            try:
                args = self.args(item, seat)
            except OSError as error:
                self.lost(item, f"its picture cannot be read: {error}")
                continue
            seat.ref, seat.item = seat.actor.run.remote(*args), item
            item.tries += 1
            return

    def _landed(self, seat):
        item = seat.item
        try:
            found = ray.get(seat.ref)
        except ray.exceptions.RayTaskError as error:
            seat.sent = set()  # it may not have kept them
            self._feed(seat)
            self.lost(item, cause(error))
            return
        except ray.exceptions.RayError as error:  # each way to end has a class of its own
            self._died(seat, item, cause(error, seat.process))
            return
        self.stillborn = 0
        if item is None:
            seat.process = found
            self.tell(seat, f"is ready, process {found}")
            self._feed(seat)
            return
        again = self._again(seat, item, found)
        if again:
            seat.rows.appendleft(item)
        self._feed(seat)  # the worker goes on while its result is written
        if not again:
            self.done(item, found)

    def _again(self, seat, item, found) -> bool:
        """Whether a row is tried once more. Decides too whether its worker is replaced."""
        seat.base = seat.base or found.get("memory", 0)
        grown = found.get("memory", 0) - seat.base
        item.small += out_of_memory(found)
        if out_of_memory(found) and item.small < TRIES:
            self._leave(seat, "found no memory for a row: it is tried once more, with --lowvram", small=True)
            return True
        if seat.small and item.small and not (seat.rows and seat.rows[0].small):
            self._leave(seat, "goes on without --lowvram")
        elif grown > self.options.recycle:
            self._leave(seat, f"grew by {grown / 1e9:.1f} GB: another takes its place")
        return False

    def _leave(self, seat, words, small=False):
        """Replace a worker before its next row."""
        seat.small, seat.leaving = small, True
        self.tell(seat, words)

    def _died(self, seat, item, why):
        self.tell(seat, f"ended: {why}")
        ray.kill(seat.actor)  # where its result alone was lost, it still has its core
        if item is None:
            self.stillborn += 1
            if self.stillborn >= STARTS and self._left():
                raise NoWorkers(f"{STARTS} workers in turn ended while they started: {why}")
        else:
            item.losses += 1
            if item.losses < TRIES:
                seat.rows.appendleft(item)
            else:
                self.lost(item, f"it ended its worker {item.losses} times: {why}")
        seat.ref = seat.item = None
        if seat.rows or self.waiting:
            self._start(seat)


def environment(cores) -> dict:
    """The variables of a worker's process."""
    threads = os.environ.get("OMP_NUM_THREADS", str(cores))
    return {"PYTHONPATH": str(ROOT / "tools"), "COMFYUI_PATH": str(find_host()), "OMP_NUM_THREADS": threads,
            "PALIMPSEST_HOST_OPTIONS": os.environ.get("PALIMPSEST_HOST_OPTIONS", "")}


def out_of_memory(found: dict) -> bool:
    return "OutOfMemory" in found.get("exception", "") or "Allocation on device" in found.get("error", "")


def cause(error, process=0) -> str:
    """Why a worker ended, in a line: what Ray says, and the last error in the process's log, where that is at hand."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = lines[-1].replace("The actor is dead because its worker process has died. ", "").partition(" Some common")[0]
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        said = "Ray ended its process because its machine ran low on memory: take fewer --workers"
    elif "End of file" in said:
        said = "its process was killed (by the system, for lack of memory, or by hand) or crashed"
    logs = Path("/tmp/ray", ray.get_runtime_context().get_session_name(), "logs")
    for log in logs.glob(f"worker-*-{process}.err") if process else ():
        told = [line for line in log.read_text(errors="replace").splitlines()[-30:] if "rror" in line]
        said += f"; {told[-1][:200]}" if told else ""
        said += f" (its log: {log})"
    return said
