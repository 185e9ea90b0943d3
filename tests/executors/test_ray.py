"""What trials on a Ray cluster have of their own: nodes that share no disk, and that are lost."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedding_studio.engine.jobs import MethodRef
from embedding_studio.errors import (
    ConfigurationError,
    ExecutorUnavailable,
    TrialCanceled,
)
from embedding_studio.executors import Executor, open_executor
from embedding_studio.executors.base import Job, Report, Reporter, Resources, Verdict
from embedding_studio.settings import Settings
from embedding_studio.tasks import TaskStatus
from tests.contracts.test_executor import (
    Copying,
    CountingThreads,
    Reporting,
    SeeingDevices,
    Surviving,
    _is_alive,
    go_on,
)
from tests.executors.clusters import RayCluster, RayNode, join, skip_without_ray
from tests.iterations import open_bench
from tests.servers import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def on_ray(ray_cluster: RayCluster) -> Iterator[Executor]:
    opened = open_executor("ray:auto")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared_nodes() -> Iterator[RayCluster]:
    """A head that runs no jobs."""
    skip_without_ray()
    cluster = RayCluster(cpus=0)
    yield cluster
    cluster.stop()


@pytest.fixture
def two_nodes(shared_nodes: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """A cluster of two nodes that run one job each; tests may kill them."""
    while len(shared_nodes.nodes) < 2:
        shared_nodes.add_node(cpus=1)
    join(shared_nodes, monkeypatch)
    return shared_nodes


@dataclass(frozen=True)
class Meeting(Job[tuple[str, int, str]]):
    """Waits until `jobs` of its kind are at work and signs the file it reads; answers its node's
    folder, the inode of its copy and what stands in it."""

    reads = ("source",)

    source: Path
    place: Path
    jobs: int
    name: str

    def __call__(self, report: Reporter) -> tuple[str, int, str]:
        with (self.source / "signatures").open("a") as signatures:
            signatures.write(f"{self.name}\n")
        (self.place / self.name).touch()
        wait_until(lambda: len(list(self.place.iterdir())) >= self.jobs)
        text = (self.source / "signatures").read_text()
        return tempfile.gettempdir(), self.source.stat().st_ino, text


def test_what_jobs_read_reaches_each_node_once(two_nodes: RayCluster, tmp_path: Path) -> None:
    """All jobs of a node, in whichever process, share one copy, and what they write there."""
    executor = open_executor("ray:auto")
    assert executor.slots(Resources()) == 2
    source = tmp_path / "source"
    (source / "__pycache__").mkdir(parents=True)
    copies: dict[str, set[int]] = {}
    for part in range(3):
        place = tmp_path / f"meeting-{part}"
        place.mkdir()
        jobs = [Meeting(source, place, 2, f"{part}-{n}") for n in range(2)]
        futures = [executor.submit(job, go_on) for job in jobs]
        for folder, inode, text in [future.result(60) for future in futures]:
            copies.setdefault(folder, set()).add(inode)
            assert len(text.splitlines()) == part + 1
    executor.close()
    assert set(copies) == {str(node.temporary_files) for node in two_nodes.nodes}
    assert [len(inodes) for inodes in copies.values()] == [1, 1]
    assert list(source.iterdir()) == [source / "__pycache__"]


@dataclass(frozen=True)
class Halting(Job[str]):
    """Reports twice, waits for a file `open`, reports twice again and answers its node's folder."""

    gate: Path

    def __call__(self, report: Reporter) -> str:
        for step in range(4):
            report(Report(step, {"metric": 0.5}))
            if step == 1:
                (self.gate / Path(tempfile.gettempdir()).name).touch()
                wait_until((self.gate / "open").exists)
        return tempfile.gettempdir()


def remove_node(cluster: RayCluster, at_work: list[str]) -> RayNode:
    """Kill a node that is at work."""
    node = next(node for node in cluster.nodes if node.temporary_files.name in at_work)
    cluster.nodes.remove(node)
    node.kill()
    return node


def test_a_job_whose_node_is_lost_runs_on_another(two_nodes: RayCluster, tmp_path: Path) -> None:
    """It begins anew, and what it had reported is not reported again."""
    executor = open_executor("ray:auto")
    steps: list[int] = []

    def note(report: Report) -> Verdict:
        steps.append(report.step)
        return Verdict.CONTINUE

    future = executor.submit(Halting(tmp_path), note)
    wait_until(lambda: list(tmp_path.iterdir()))
    lost = remove_node(two_nodes, [entry.name for entry in tmp_path.iterdir()])
    (tmp_path / "open").touch()
    assert future.result(120) == str(two_nodes.nodes[0].temporary_files)
    assert str(lost.temporary_files) != str(two_nodes.nodes[0].temporary_files)
    assert steps == [0, 1, 2, 3]
    executor.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What trials of the method Gated wait at."""
    folder = tmp_path / "gate"
    folder.mkdir()
    monkeypatch.setenv("ES_GATE", str(folder))
    return folder


@pytest.mark.faults
def test_an_iteration_survives_the_loss_of_a_node(
    two_nodes: RayCluster, settings: Settings, gate: Path
) -> None:
    """Every trial finishes, and its steps are in the ledger once."""
    bench = open_bench(settings.replaced(executor="ray:auto", plugins_folder=PLUGINS))
    bench.post_sessions()
    task = bench.post_task("Gated", trials=4)
    work = threading.Thread(target=bench.worker.work_once)
    work.start()
    wait_until(lambda: len(list(gate.iterdir())) == 2)
    remove_node(two_nodes, [entry.name.rpartition("-")[0] for entry in gate.iterdir()])
    (gate / "open").touch()
    work.join(180)
    ended = bench.house.store.tasks.get(task.id)
    assert ended.status is TaskStatus.DONE
    runs = bench.runs(ended)
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    for run in runs:
        history = bench.mlflow.get_metric_history(run.info.run_id, "skill")
        assert sorted(metric.step for metric in history)[:2] == [0, 1]
    bench.house.executor.close()
    bench.house.store.close()


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A cluster of a head alone, which the test may kill."""
    skip_without_ray()
    cluster = RayCluster(cpus=2)
    join(cluster, monkeypatch)
    yield cluster
    cluster.stop()


def is_there(executor: Executor) -> bool:
    try:
        executor.ping()
    except ExecutorUnavailable:
        return False
    return True


@pytest.mark.faults
@pytest.mark.parametrize("is_client", [False, True], ids=["auto", "client"])
def test_a_head_that_goes_away_and_returns(
    own_cluster: RayCluster,
    is_client: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ran is out of order, and so is the executor, until the cluster is there again."""
    monkeypatch.setattr("embedding_studio.executors.ray.SILENCE_SECONDS", 10.0)
    executor = open_executor(own_cluster.client_address if is_client else "ray:auto")
    monkeypatch.setattr("embedding_studio.executors.ray.CONNECT_SECONDS", 15.0)
    future = executor.submit(Halting(tmp_path), go_on)
    wait_until(lambda: list(tmp_path.iterdir()))
    own_cluster.head.kill()
    assert isinstance(future.exception(60), ExecutorUnavailable)
    with pytest.raises(ExecutorUnavailable):
        executor.slots(Resources())
    with pytest.raises(ExecutorUnavailable):
        executor.submit(Reporting(), go_on)
    with pytest.raises(ExecutorUnavailable):
        executor.ping()
    own_cluster.start_head()
    wait_until(lambda: is_there(executor), 120)
    assert executor.submit(Reporting(), go_on).result(60) > 0
    executor.close()


@pytest.mark.faults
def test_an_iteration_waits_for_its_cluster(
    own_cluster: RayCluster, settings: Settings, gate: Path
) -> None:
    """A head that goes away costs the time it is away; finished trials stay finished."""
    bench = open_bench(settings.replaced(executor="ray:auto", plugins_folder=PLUGINS))
    bench.post_sessions()
    task = bench.post_task("Gated", trials=3)
    work = threading.Thread(target=bench.worker.work_once)
    work.start()
    wait_until(lambda: len(list(gate.iterdir())) == 2)
    own_cluster.head.kill()
    (gate / "open").touch()
    own_cluster.start_head()
    work.join(180)
    ended = bench.house.store.tasks.get(task.id)
    assert ended.status is TaskStatus.DONE
    statuses = [run.info.status for run in bench.runs(ended)]
    assert statuses.count("FINISHED") == 3
    assert set(statuses) <= {"FINISHED", "KILLED"}
    bench.house.executor.close()
    bench.house.store.close()


def test_through_ray_client(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that this machine is no part of does the same."""
    executor = open_executor(ray_cluster.client_address)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(b"x" * 20_000_000)
    steps: list[int] = []

    def note(report: Report) -> Verdict:
        steps.append(report.step)
        return Verdict.CONTINUE

    monkeypatch.chdir(tmp_path)
    job = Copying(MethodRef("Toy", PLUGINS), Path("source"), Path("target"))
    executor.submit(job, go_on).result(60)
    assert (target / "file").read_bytes() == (source / "file").read_bytes()
    assert executor.submit(Reporting(3), note).result(60) > 0
    assert steps == [0, 1, 2]
    stuck = tmp_path / "stuck"
    stuck.mkdir()
    future = executor.submit(Surviving(stuck), go_on)
    wait_until((stuck / "pid").exists)
    executor.kill(future)
    assert isinstance(future.exception(5), TrialCanceled)
    pid = int((stuck / "pid").read_text())
    wait_until(lambda: not _is_alive(pid))
    executor.close()


def test_a_job_sees_the_gpus_it_asked_for(on_ray: Executor, tmp_path: Path) -> None:
    """One each for two that asked for one; none for who asked for none."""
    needs = Resources(cpus=1, gpus=1)
    assert on_ray.slots(needs) == 2
    assert on_ray.slots(Resources(cpus=0.1, gpus=0.5)) == 4
    futures = [on_ray.submit(SeeingDevices(tmp_path, 2), go_on, needs) for _ in range(2)]
    assert {future.result(60) for future in futures} == {"0", "1"}
    without = on_ray.submit(SeeingDevices(tmp_path, 3), go_on)
    assert without.result(60) == ""


def test_gpus_are_asked_for_where_there_are_any(two_nodes: RayCluster) -> None:
    """A job that would like a GPU runs on a cluster without."""
    executor = open_executor("ray:auto")
    assert executor.submit(Reporting(), go_on, Resources(gpus=1)).result(60) > 0
    executor.close()


def test_a_job_has_as_many_threads_as_cores(on_ray: Executor) -> None:
    """Also where other jobs of other needs were before it."""
    for cpus, threads in [(2, 2), (None, 1), (0.5, 1)]:
        assert on_ray.submit(CountingThreads(), go_on, Resources(cpus)).result(60) == threads


@dataclass(frozen=True)
class ReadingSettings(Job[dict[str, str]]):
    def __call__(self, report: Reporter) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("ES_")}


def test_settings_travel_and_secrets_do_not(
    ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method reads the same settings on a node as where the task is."""
    monkeypatch.setenv("ES_INITIAL_MODEL", "some/model")
    monkeypatch.setenv("ES_WEBHOOK_SECRET", "whsec_x")
    monkeypatch.setenv("ES_STORE_URL", "mongodb://user:password@host/database")
    executor = open_executor("ray:auto")
    there = executor.submit(ReadingSettings(), go_on).result(60)
    executor.close()
    assert there["ES_INITIAL_MODEL"] == "some/model"
    assert not there.keys() & {"ES_WEBHOOK_SECRET", "ES_STORE_URL", "ES_API_KEY"}


def test_what_nobody_used_for_long_is_removed(
    on_ray: Executor, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    """New copies drive out the old ones of their node."""
    cache = ray_cluster.head.temporary_files / f"embedding-studio-{os.getuid()}"
    for name in ("first", "second"):
        source = tmp_path / name
        source.mkdir()
        (source / name).touch()
        job = Copying(MethodRef("Toy", PLUGINS), source, tmp_path / f"copy of {name}")
        on_ray.submit(job, go_on).result(60)
        copies = {path.parent.parent for path in cache.glob("*/*/*")}
        for copy in copies:
            os.utime(copy, (0, 0))
    names = {path.name for path in cache.glob("*/*/*")}
    assert "second" in names
    assert "first" not in names


def test_a_killed_job_leaves_no_process(on_ray: Executor, tmp_path: Path) -> None:
    """Its cores are free for the next one."""
    future = on_ray.submit(Surviving(tmp_path), go_on, Resources(cpus=2))
    wait_until((tmp_path / "pid").exists)
    queued = on_ray.submit(Reporting(), go_on, Resources(cpus=2))
    on_ray.kill(queued)
    assert isinstance(queued.exception(5), TrialCanceled)
    on_ray.kill(future)
    assert isinstance(future.exception(5), TrialCanceled)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _is_alive(pid))
    assert on_ray.submit(Reporting(), go_on, Resources(cpus=2)).result(60) > 0


@pytest.mark.parametrize("spec", ["ray:auto", "ray://"])
def test_a_cluster_that_is_not_there(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which cluster, and that another try may help."""
    skip_without_ray()
    monkeypatch.setattr("embedding_studio.executors.ray.CONNECT_SECONDS", 5.0)
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ExecutorUnavailable, match="Ray cluster at"):
        open_executor(spec + address if spec == "ray://" else spec)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is an extra."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray", "ray_driver"):
        monkeypatch.delitem(sys.modules, f"embedding_studio.executors.{name}", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'embedding-studio\[ray\]'"):
        open_executor("ray:auto")
