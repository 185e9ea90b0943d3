"""Real worker processes: killed, stopped, asked to end, and racing each other."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from os import environ
from pathlib import Path

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.settings import Settings
from embedding_studio.tasks import FineTuningTask, TaskStatus
from tests.faults.points import trial_processes
from tests.iterations import Bench
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(settings: Settings) -> Iterator[Start]:
    """Start `embedding-studio worker` on the bench's data, with a lease of three seconds."""
    workers: list[subprocess.Popen[bytes]] = []
    quick = settings.replaced(executor="process:1", lease_seconds=3.0, poll_seconds=0.1)

    def start() -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "embedding_studio", "worker"],
            env={**environ, **quick.as_environment()},
        )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
        worker.kill()
        worker.wait()


def is_in_trial(bench: Bench, task: FineTuningTask) -> Callable[[], bool]:
    def check() -> bool:
        now = bench.house.store.tasks.get(task.id)
        return now.progress is not None and now.progress.main_metric is not None

    return check


def has_status(bench: Bench, task: FineTuningTask, status: TaskStatus) -> Callable[[], bool]:
    return lambda: bench.house.store.tasks.get(task.id).status is status


def task_now(bench: Bench, task: FineTuningTask) -> FineTuningTask:
    return bench.house.store.tasks.get(task.id)


def test_a_canceled_trial_ends_within_seconds(bench: Bench, start_worker: Start) -> None:
    """Cancel reaches a trial that never reports: its process ends and what it wrote is removed."""
    worker = start_worker()
    bench.post_sessions()
    task = bench.post_task("Stuck")
    wait_until(lambda: len(trial_processes(worker.pid)) == 1 and bench.experiments())
    wait_until(lambda: bench.runs(task_now(bench, task)))
    bench.house.store.tasks.cancel(task.id, utc_now())
    wait_until(lambda: [e.tags["es.state"] for e in bench.experiments()] == ["canceled"], seconds=6)
    wait_until(lambda: trial_processes(worker.pid) == [], seconds=6)
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.CANCELED


def test_a_killed_workers_task_goes_on_elsewhere(bench: Bench, start_worker: Start) -> None:
    """After kill -9 in mid-trial no process is left, and when the lease is out another worker
    claims the task, counts one expired lease and marks the orphaned run KILLED."""
    first = start_worker()
    bench.post_sessions()
    task = bench.post_task("Slow", trials=1)
    wait_until(is_in_trial(bench, task))
    (orphan,) = trial_processes(first.pid)
    first.kill()
    first.wait()
    wait_until(lambda: not Path(f"/proc/{orphan}").exists())
    start_worker()
    wait_until(lambda: bench.house.store.tasks.get(task.id).attempt == 2)
    wait_until(lambda: len(bench.runs(task_now(bench, task))) == 2)
    statuses = sorted(run.info.status for run in bench.runs(task_now(bench, task)))
    assert statuses == ["KILLED", "RUNNING"]
    assert task_now(bench, task).expired_leases == 1


def test_two_workers_never_run_the_same_task(bench: Bench, start_worker: Start) -> None:
    """Of two workers on one database each task is claimed once, and every task is done."""
    bench.post_sessions()
    batch = bench.house.store.clickstream.release("all", utc_now())
    tasks = [bench.post_task("Worse", batch_id=batch.batch_id, trials=1) for _ in range(6)]
    start_worker()
    start_worker()
    for task in tasks:
        wait_until(has_status(bench, task, TaskStatus.DONE))
    finished = [bench.house.store.tasks.get(task.id) for task in tasks]
    assert [task.attempt for task in finished] == [1] * 6
