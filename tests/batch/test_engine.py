"""Rows on Ray, by workers without ComfyUI: what becomes of a row whose worker dies, grows or finds no memory."""
import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray", reason="the extra `batch` is not installed")
from palimpsest.batch import engine  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pack import ROOT  # noqa: E402

STUB = "stub:Stub"


@pytest.fixture(scope="module", autouse=True)
def here():
    """A worker's process finds the stub beside this file."""
    variables = engine.environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "environment", lambda cores: {
            **variables(cores), "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(Path(__file__).parent)])})
        yield


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2 ** 20})
    made.add_node(num_cpus=1, object_store_memory=80 * 2 ** 20)
    engine.connect(engine.Options(address=made.address))
    yield made
    ray.shutdown()
    made.shutdown()


class Ran:
    """A run of rows: what became of each, the order in which processes had them, and what was told of workers."""

    def __init__(self, groups, tmp_path, watch=lambda ran: None, made=STUB, settings=None):
        self.found, self.gone, self.told, self.nodes, self.sent = {}, {}, [], set(), {}
        self.seen, self.watch = tmp_path / "seen", watch
        jobs = [[SimpleNamespace(name=name) for name in group] for group in groups]
        self.engine = engine.Engine(made, {"seen": str(self.seen)} if settings is None else settings, engine.Options(),
                                    self.args, self.done,
                                    lambda item, why: self.gone.update({item.job.name: why}),
                                    lambda seat, words: self.told.append(words))
        self.engine.run(jobs)

    def args(self, item, seat):
        self.sent[item.job.name], seat.sent = seat.sent, {item.job.name}
        return item.job.name,

    def done(self, item, found):
        assert item.job.name not in self.found
        self.found[item.job.name] = item.tries, found["exception"]
        self.nodes.add(found["node"])
        self.watch(self)

    def processes(self):
        return [line.split() for line in self.seen.read_text().splitlines()]


def test_two_nodes_share_groups_and_a_killed_worker_loses_no_row(cluster, tmp_path):
    def kill(ran):
        if len(ran.found) == 8:
            seat = ran.engine.seats[0]
            killed.append(seat.process)
            os.kill(seat.process, signal.SIGKILL)

    killed, groups = [], [[f"slow {g}{row}" for row in "abcd"] for g in range(10)]
    ran = Ran(groups, tmp_path, kill)
    assert set(ran.found) == {name for group in groups for name in group} and not ran.gone
    assert len(ran.nodes) == 2, "both nodes worked"
    assert sum(words.startswith("ended") for words in ran.told) == 1 and killed
    assert any("was killed" in words for words in ran.told)
    where = {}
    for process, _, name in ran.processes():
        where.setdefault(name[:1], []).append((process, name))
    moved = [g for g, rows in where.items() if len({process for process, _ in rows}) > 1]
    assert len(moved) <= 1, "a group stays with its worker, but for the one whose worker was killed"
    assert all([name for _, name in rows] == sorted(name for _, name in rows) for rows in where.values())


def test_a_row_that_ends_its_worker_is_given_up_and_all_others_are_done(cluster, tmp_path):
    ran = Ran([["a", "poison", "b", "raises", "c"], ["d", "e"]], tmp_path)
    assert set(ran.found) == set("abcde") and set(ran.gone) == {"poison", "raises"}
    assert ran.gone["poison"].startswith("it ended its worker 2 times: its process was killed")
    assert "a mistake" in ran.gone["raises"]
    assert ran.sent["raises"] == {"b"} and not ran.sent["c"], "nobody knows whether it kept its pictures"
    assert Counter(name for _, name in ran.processes()) == Counter(
        ["a", "poison", "poison", "b", "raises", "c", "d", "e"])


def test_a_worker_that_ray_ends_for_memory_has_died(cluster, tmp_path, monkeypatch):
    """Ray's memory monitor has an error of its own for it."""
    get = ray.get

    def low(ref):
        try:
            return get(ref)
        except ray.exceptions.RayActorError:
            raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed\nRefer to the documentation") from None

    monkeypatch.setattr(ray, "get", low)
    ran = Ran([["a", "poison", "b"], ["c"]], tmp_path)
    assert set(ran.found) == set("abc") and set(ran.gone) == {"poison"}
    assert "2 times: Ray ended its process because its machine ran low on memory: take fewer" in ran.gone["poison"]


def test_a_worker_that_grows_is_replaced_and_a_row_without_memory_is_tried_alone(cluster, tmp_path):
    ran = Ran([["a", "grows", "b", "large", "c", "huge", "d"]], tmp_path)
    assert {n: f for n, f in ran.found.items() if n in ("large", "huge")} == {
        "large": (2, ""), "huge": (2, "OutOfMemoryError")}
    assert set(ran.found) == {"a", "grows", "b", "large", "c", "huge", "d"} and not ran.gone
    assert any(words.startswith("grew by 5.0 GB") for words in ran.told)
    process = {name: process for process, name in ran.processes()}
    assert process["a"] == process["grows"] != process["huge"], "a new worker came after the one that grew"


def test_workers_that_cannot_start_end_the_run_with_their_reason(cluster, tmp_path):
    with pytest.raises(engine.NoWorkers, match="3 workers in turn ended while they started: .*no ComfyUI here"):
        Ran([["a"]], tmp_path, made="stub:Unable", settings={})


@pytest.mark.parametrize("asked, said", [(engine.Options(workers=9), "9 workers need as many cores, Ray sees 2")])
def test_more_workers_than_there_is_room_for_are_refused(asked, said, cluster):
    with pytest.raises(engine.NoWorkers, match=said):
        engine.connect(asked)


def test_a_cluster_that_cannot_be_joined_is_told_with_what_a_token_needs(monkeypatch):
    """Ray sends no token where its mode is not set."""
    def refused(**place):
        assert place["address"] == "10.0.0.1:6379"
        raise ConnectionError("InvalidAuthToken")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(engine.NoWorkers, match="10.0.0.1:6379: InvalidAuthToken .*RAY_AUTH_MODE is token, from"):
        engine.connect(engine.Options(address="10.0.0.1:6379"))


def test_a_worker_that_finds_no_room_keeps_no_finished_run_alive(cluster, tmp_path, monkeypatch):
    """Another's work has a core of the two that the cluster has."""
    @ray.remote(num_cpus=1)
    class Other:
        def here(self):
            return True

    other, wait, waits = Other.remote(), ray.wait, []
    assert ray.get(other.here.remote())

    def counted(*args, **more):
        waits.append(args)
        assert len(waits) < 60, "it waits for the worker that has no room"
        return wait(*args, **more)

    monkeypatch.setattr(ray, "wait", counted)
    try:
        ran = Ran([["a", "b"], ["c"]], tmp_path)
    finally:
        ray.kill(other)
    assert set(ran.found) == set("abc") and len({process for process, _ in ran.processes()}) == 1


@pytest.mark.parametrize("address, found, waited", [
    ("auto", [{}, {"memory": 1.0}, {"CPU": 4.0, "GPU": 1.0}], 2), ("", [{}], 0), ("auto", [{}] * 99, 90)],
    ids=["they come", "no cluster", "they never come"])
def test_machines_of_a_cluster_are_waited_for(address, found, waited, monkeypatch, capsys):
    left, slept = iter(found), []
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(left))
    monkeypatch.setattr(engine.time, "sleep", slept.append)
    monkeypatch.setattr(engine.time, "monotonic", lambda: sum(slept) + 1e-3 * len(slept))
    assert engine.joined(address) == ((4, 1.0) if waited == 2 else (0, 0))
    assert len(slept) == waited == capsys.readouterr().err.count("waits for the cluster's machines")


def test_a_run_that_is_asked_to_end_ends_as_before_ray(monkeypatch):
    """Ray puts a handler of its own there, which ends the process at once."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **place: signal.signal(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(engine, "joined", lambda address: (2, 0.0))
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", None)
    monkeypatch.setattr(engine.ray_constants, "ENABLE_RAY_CLUSTER", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.signal(signal.SIGTERM, lambda *_: "ours")
    try:
        ours = signal.getsignal(signal.SIGTERM)
        assert engine.connect(engine.Options()) == (2, 1, 0)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_cluster_file_of_the_documents_is_one_of_rays():
    yaml = pytest.importorskip("yaml")
    from ray.autoscaler._private.util import prepare_config, validate_config
    text = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    config = yaml.safe_load(text)
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="zebra"):
        validate_config(prepare_config(config | {"zebra": 1}))
