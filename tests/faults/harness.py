"""Workers that fail where a test says so, and what must hold whatever failed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import pytest
from _pytest.mark import ParameterSet
from mlflow.entities import Run, ViewType

from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import (
    LEGAL_TRANSITIONS,
    OWNED,
    TERMINAL,
    FineTuningTask,
    TaskEvent,
    TaskEventKind,
    TaskStatus,
)
from tests.faults.points import Fault, trial_processes
from tests.faults.proxy import Proxy
from tests.iterations import TOYS, Bench, open_bench
from tests.servers import MlflowServer, Secantus
from tests.waiting import wait_until

QUICK = {"executor": "inline", "lease_seconds": 1.0, "poll_seconds": 0.05}
LOG = "workers.log"


def in_every_run(faults: Sequence[Fault], names: set[str]) -> list[ParameterSet]:
    """Return the faults as parameters of a test; those not named run under `make test-faults`."""
    assert names <= {str(fault) for fault in faults}
    return [
        pytest.param(
            fault, id=str(fault), marks=[] if str(fault) in names else [pytest.mark.faults]
        )
        for fault in faults
    ]


_NURSERY = "from tests.faults.nursery import main; main()"
"""No `-m`: each process of a trial would import the nursery anew, as the main module of its own."""


class Nursery:
    """Forks workers in no time; see `tests.faults.nursery`. modules: more that they import."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class WorkerProcess:
    """One worker under test. marker: there from the moment its fault happened."""

    nursery: Nursery
    pid: int
    marker: Path
    fault: Fault | None = None

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs; negative: by that signal."""
        code: int | None = self.nursery.ask(status=self.pid)
        return code

    def send(self, number: signal.Signals) -> None:
        if self.exit_code() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 30.0) -> int:
        wait_until(lambda: self.exit_code() is not None, seconds)
        code = self.exit_code()
        assert code is not None
        return code

    def wait_for_fault(self, seconds: float = 60.0) -> None:
        """Return once the fault happened; fail the test if the worker ended before."""
        wait_until(lambda: self.marker.exists() or self.exit_code() is not None, seconds)
        assert self.marker.exists(), "the worker ended without its fault"

    def is_frozen(self) -> bool:
        state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state == "T"

    def trials(self) -> list[int]:
        return trial_processes(self.pid)


@dataclass
class Yard:
    """A house on disk, seen through a bench, and real workers on it."""

    bench: Bench
    nursery: Nursery
    settings: Settings
    workers: list[WorkerProcess] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    variables: Mapping[str, str] = field(default_factory=dict)  # of its workers' environment

    def start_worker(self, fault: Fault | None = None, **changes: Any) -> WorkerProcess:
        """Start a worker with the yard's settings, some changed; it fails as `fault` says."""
        folder = self.settings.data_folder
        marker = folder / f"fault-{next(self.numbers)}"
        environment = {
            **self.settings.replaced(**changes).as_environment(),
            "ES_TEST_LOG": str(folder / LOG),
            **(fault.as_variable(marker) if fault else {}),
            **self.variables,
        }
        worker = WorkerProcess(self.nursery, self.nursery.ask(fork=environment), marker, fault)
        self.workers.append(worker)
        return worker

    def wait_for(self, task: FineTuningTask, *statuses: TaskStatus, seconds: float = 60.0) -> None:
        """Return once the task has one of these statuses, any final one if none is named."""
        wanted = statuses or tuple(TERMINAL)
        wait_until(lambda: self.now(task).status in wanted, seconds)

    def now(self, task: FineTuningTask) -> FineTuningTask:
        return self.bench.house.store.tasks.get(task.id)

    def events(self, task: FineTuningTask) -> list[TaskEvent]:
        return events_of(self.bench.house.store, task)

    def wait_until_ready(self, worker: WorkerProcess) -> None:
        """Return once a worker looks for tasks and heeds signals."""
        wait_until(lambda: re.search(rf"-{worker.pid}-\w+ is ready", self.log))

    def drain(self) -> None:
        """End all workers that live as a deployment does."""
        for worker in self.workers:
            if worker.exit_code() is None:
                worker.send(signal.SIGCONT)
                self.wait_until_ready(worker)
                worker.send(signal.SIGTERM)
                assert worker.wait() == 0

    def close(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGKILL)
            worker.wait()

    @property
    def log(self) -> str:
        file = self.settings.data_folder / LOG
        return file.read_text(errors="replace") if file.exists() else ""


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """One process that forks workers for all tests."""
    opened = Nursery()
    yield opened
    opened.close()


@pytest.fixture
def yard(settings: Settings, nursery: Nursery) -> Iterator[Yard]:
    """A house on SQLite with short leases."""
    bench = open_bench(settings)
    opened = Yard(bench, nursery, settings.replaced(**QUICK))
    yield opened
    opened.close()
    bench.house.executor.close()
    bench.house.store.close()


@pytest.fixture
def shared_yard(settings: Settings, nursery: Nursery, secantus_url: str) -> Iterator[Yard]:
    """The same on a database of a server: one that freezes nothing but itself when it is frozen."""
    bench = open_bench(settings.replaced(store_url=f"{secantus_url}/{uuid.uuid4().hex}"))
    opened = Yard(bench, nursery, bench.house.settings.replaced(**QUICK))
    yield opened
    opened.close()
    bench.house.executor.close()
    bench.house.store.close()


@pytest.fixture
def yard_on_secantus(settings: Settings, nursery: Nursery, secantus: Secantus) -> Iterator[Yard]:
    """The same on a database server of its own that is given up after a second."""
    waits = "serverSelectionTimeoutMS=500&connectTimeoutMS=500&socketTimeoutMS=1000"
    url = f"{secantus.url}/yard?{waits}"
    bench = open_bench(settings.replaced(store_url=url))
    opened = Yard(bench, nursery, bench.house.settings.replaced(**QUICK))
    yield opened
    opened.close()
    bench.house.executor.close()
    bench.house.store.close()


@dataclass
class RemoteYard(Yard):
    """A yard whose workers reach MLflow's server through a proxy that fails when told to."""

    proxy: Proxy = field(kw_only=True)

    def post_new_sessions(self) -> None:
        """Post sessions that no earlier test on this house has posted."""
        known = len(self.bench.house.store.tasks.page(limit=1000))
        self.bench.post_sessions(start=1000 * (known + 1))


IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}


@pytest.fixture(scope="session")
def remote_house(
    tmp_path_factory: pytest.TempPathFactory, empty_mlflow_database: Path
) -> Iterator[tuple[Bench, Proxy]]:
    """A house on SQLite with an MLflow server, as a deployment has it, and a proxy before that."""
    folder = tmp_path_factory.mktemp("remote")
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    server = MlflowServer(folder)
    proxy = Proxy(server.url)
    bench = open_bench(
        Settings(data_folder=folder, plugins_folder=TOYS, mlflow_tracking_uri=server.url)
    )
    yield bench, proxy
    bench.house.executor.close()
    bench.house.store.close()
    proxy.close()
    server.close()


@pytest.fixture
def remote_yard(remote_house: tuple[Bench, Proxy], nursery: Nursery) -> Iterator[RemoteYard]:
    """Workers of that house behind the proxy; the bench reaches MLflow directly."""
    bench, proxy = remote_house
    mlflow.set_tracking_uri(bench.house.settings.resolved_tracking_uri)  # others set it too
    quick = {**QUICK, "lease_seconds": 5.0, "mlflow_tracking_uri": proxy.url}
    opened = RemoteYard(
        bench,
        nursery,
        bench.house.settings.replaced(**quick),
        variables=IMPATIENT,
        proxy=proxy,
    )
    yield opened
    proxy.heal()
    opened.close()


# -- what must hold --------------------------------------------------------------------------------


def check_invariants(yard: Yard, may_hold_work_folder: bool = False) -> None:
    """What holds once every task has ended and no worker is at work, whatever happened before.

    may_hold_work_folder: a frozen worker still has its local copies."""
    tasks = yard.bench.house.store.tasks.page(limit=1000)
    kept = {experiment.experiment_id for experiment in yard.bench.experiments()}
    for task in tasks:
        check_history(task, yard.events(task))
        assert task.experiment_id is None or task.experiment_id in kept, "a link leads nowhere"
        if task.status is TaskStatus.DONE and task.experiment_id in kept:
            check_trials(yard.bench, task)
    check_ledger(yard.bench)
    keep = yard.settings.keep_champions
    check_champions(yard.bench, {task.fine_tuning_method for task in tasks}, keep)
    check_model_files(yard.bench, tasks)
    work = yard.settings.work_folder
    assert may_hold_work_folder or not work.exists() or list(work.iterdir()) == []


def events_of(store: Store, task: FineTuningTask) -> list[TaskEvent]:
    """Return a task's whole history, whose numbers have no gaps."""
    numbered = store.tasks.events(task.id, limit=10_000)
    assert [one.number for one in numbered] == list(range(1, len(numbered) + 1))
    return [one.event for one in numbered]


def check_history(task: FineTuningTask, events: list[TaskEvent]) -> None:
    """The events tell legal moves only, of one owner at a time, and end where the task stands."""
    status = TaskStatus.PENDING
    owner: int | None = None
    assert events[0].kind is TaskEventKind.CREATED
    for event in events[1:]:
        moved = _moved_to(event.kind, status)
        if moved is not status:
            assert moved in LEGAL_TRANSITIONS[status], (status, event)
        status = moved
        match event.kind:
            case TaskEventKind.CLAIMED:
                assert owner is None, f"claimed while attempt {owner} held it: {event}"
                owner = int(event.data["attempt"])
            case TaskEventKind.LEASE_EXPIRED:
                assert owner == event.data["attempt"], event
                owner = None
            case TaskEventKind.GIVEN_BACK:
                assert owner is not None, event
                owner = None
            case TaskEventKind.CREATED:
                raise AssertionError("created twice")
            case (
                TaskEventKind.RESTARTED
                | TaskEventKind.CANCELED
                | TaskEventKind.STOP_REQUESTED
                | TaskEventKind.MODEL_REMOVED
                | TaskEventKind.ITERATION_REMOVED
            ):
                pass
            case kind if kind.value in {status.value for status in TERMINAL}:
                owner = None
            case _:
                assert owner is not None, f"an effect without an owner: {event}"
    assert status is task.status
    twice = [text for text, times in Counter(map(repr, events)).items() if times > 1]
    assert twice == [], "an effect was recorded twice"


def _moved_to(kind: TaskEventKind, status: TaskStatus) -> TaskStatus:
    match kind:
        case TaskEventKind.CLAIMED:
            return status if status in OWNED else TaskStatus.PROCESSING
        case TaskEventKind.GIVEN_BACK:
            return status if status is TaskStatus.STOPPING else TaskStatus.PENDING
        case TaskEventKind.RESTARTED:
            return TaskStatus.PENDING
        case TaskEventKind.STOP_REQUESTED:
            return TaskStatus.STOPPING
        case _:
            return next((end for end in TERMINAL if end.value == kind.value), status)


def check_trials(bench: Bench, task: FineTuningTask) -> None:
    """As many trials count as the budget has, each number once, and none was started again after
    it had finished."""
    runs = sorted(bench.runs(task), key=lambda run: run.info.start_time)
    counted = [run for run in runs if "es.outcome" in run.data.tags]
    numbers = sorted(int(run.data.tags["es.trial"]) for run in counted)
    assert numbers == list(range(task.budget.max_trials or 3)), numbers
    last = {run.data.tags["es.trial"]: run.info.run_id for run in runs}
    assert {run.info.run_id for run in counted} == set(last.values()), "a trial was redone"
    finished = [
        event.data["trial"]
        for numbered in bench.house.store.tasks.events(task.id, limit=10_000)
        if (event := numbered.event).kind is TaskEventKind.TRIAL_FINISHED
    ]
    assert len(set(finished)) == len(finished)
    assert len(bench.runs(task, "baseline")) >= 1


def check_ledger(bench: Bench) -> None:
    """No run is left RUNNING, and no iteration open."""
    for run in all_runs(bench):
        assert run.info.status != "RUNNING", dict(run.data.tags)
    assert "running" not in {experiment.tags["es.state"] for experiment in bench.experiments()}


def all_runs(bench: Bench) -> list[Run]:
    client = bench.mlflow
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, run_view_type=ViewType.ACTIVE_ONLY, max_results=5000))


def check_champions(bench: Bench, methods: set[str], keep: int) -> None:
    """The champion of each method that had one promoted is there and is what was saved, MLflow's
    alias shows it, and as many before it as are to be kept can be rolled back to."""
    tracking = bench.house.tracking
    for method in methods:
        promoted = [
            task
            for task in bench.house.store.tasks.page(limit=1000)
            if task.fine_tuning_method == method
            and task.status in (TaskStatus.DONE, TaskStatus.STOPPED)
            and task.promotion is not None
            and task.promotion.promoted
        ]
        if not promoted:
            continue
        model = bench.house.store.models.find(method)
        assert model is not None
        champion = model.version(model.champion).model
        # newest first
        assert (
            champion == promoted[0].best_model == tracking.registry.champion(model.registered_name)
        )
        assert model.is_mirrored
        for number in {model.champion, *model.former_champions(keep)}:
            kept = model.version(number).model
            registered = bench.mlflow.get_model_version(method, str(number))
            assert registered.run_id == kept.run_id
            copy = bench.house.settings.data_folder / "checked" / kept.run_id
            if not copy.exists():
                tracking.models.download(kept, copy)  # verifies every hash
                bench.worker._catalog.methods[method].load(copy)


def check_model_files(bench: Bench, tasks: list[FineTuningTask]) -> None:
    """Files lie on the runs of initial models, of versions that were not removed and of the latest
    best models, and on no other; of each such run its own files alone."""
    tracking = bench.house.tracking
    kept = {run_id for model in bench.house.store.models.all() for run_id in model.kept_run_ids}
    experiments = {experiment.experiment_id for experiment in bench.experiments()}
    kept |= {
        task.best_model.run_id
        for task in tasks
        if task.best_model is not None and task.experiment_id in experiments
    }
    stored = {
        run.info.run_id: run for run in all_runs(bench) if run.data.tags.get("es.model") == "stored"
    }
    initial = {id_ for id_, run in stored.items() if "es.kind" not in run.data.tags}
    assert set(stored) == kept | initial
    methods = [stored[id_].data.tags["es.method"] for id_ in initial]
    assert len(set(methods)) == len(methods), "a method has two initial models"
    summaries = {
        run.info.run_id: run.info.experiment_id
        for run in all_runs(bench)
        if run.data.tags.get("es.kind") == "summary" and run.info.status == "FINISHED"
    }
    for task in tasks:
        if task.status is TaskStatus.DONE and task.experiment_id in experiments:
            assert list(summaries.values()).count(task.experiment_id) == 1
    pages = {run.info.run_id for run in all_runs(bench) if run.data.tags.get("es.kind") == "data"}
    owners = pages.union(stored, summaries)
    artifacts = bench.house.settings.artifacts_folder
    for file in artifacts.rglob("*"):
        if file.is_file() and file.name != "traceback.txt":
            owner = next((part for part in file.parts if part in owners), None)
            assert owner is not None, f"an orphan: {file}"
    for run_id in stored:
        model = tracking.models.stored(run_id)
        folder = Path(model.artifact_uri.removeprefix("file://"))
        if folder.is_absolute():
            found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
            assert found == {Path(file.path) for file in model.files}
