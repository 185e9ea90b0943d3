"""Deploys are gentle, and poison does not loop."""

import os
import signal
from pathlib import Path

import pytest

from embedding_studio.tasks import TaskEventKind, TaskStatus
from tests.faults.harness import Yard, check_invariants
from tests.faults.points import ancestors
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def test_after_sigterm_the_next_worker_goes_on(yard: Yard) -> None:
    """A drained worker's task is pending, no death is counted, no process is left, and the next
    worker keeps the finished trials and runs the rest."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=4)
    first = yard.start_worker(executor="process:1")
    wait_until(lambda: TaskEventKind.TRIAL_FINISHED in {event.kind for event in yard.events(task)})
    first.send(signal.SIGTERM)
    assert first.wait(10) == 0
    given_back = yard.now(task)
    assert (given_back.status, given_back.expired_leases) == (TaskStatus.PENDING, 0)
    kept = {run.info.run_id for run in yard.bench.runs(given_back) if run.info.status == "FINISHED"}
    assert kept
    yard.start_worker()
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt, done.expired_leases) == (TaskStatus.DONE, 2, 0)
    finished = {run.info.run_id for run in yard.bench.runs(done) if run.info.status == "FINISHED"}
    assert kept < finished
    yard.drain()
    check_invariants(yard)


def test_a_second_sigterm_ends_a_worker_at_once(yard: Yard) -> None:
    """A worker whose trial never reports, in its own process, cannot drain: it is told twice."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Stuck", trials=1)
    worker = yard.start_worker(executor="inline")
    wait_until(lambda: (now := yard.now(task)).experiment_id and yard.bench.runs(now))
    yard.wait_until_ready(worker)
    worker.send(signal.SIGTERM)
    with pytest.raises(AssertionError):
        worker.wait(2)
    worker.send(signal.SIGTERM)
    assert worker.wait(2) == 128 + signal.SIGTERM


def test_a_trial_that_always_crashes_says_why(yard: Yard) -> None:
    """The task ends as an error with the signal and the last lines that the process printed; so
    does the traceback that is kept with each failed run."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Shouting", trials=2)
    worker = yard.start_worker(executor="process:1", lease_seconds=10.0)
    yard.wait_for(task)
    done = yard.now(task)
    assert done.status is TaskStatus.ERROR
    assert done.error is not None
    assert "SIGABRT" in done.error
    assert "the device is on fire" in done.error
    assert "warning 99" in done.error
    assert "warning 50\n" not in done.error
    assert "in train" in done.error  # where it was
    runs = yard.bench.runs(done)
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    for run in runs:
        traceback = yard.bench.mlflow.download_artifacts(run.info.run_id, "traceback.txt")
        assert "the device is on fire" in Path(traceback).read_text()
        assert run.info.run_name.endswith("failed: TrialCrashed")
        output = yard.bench.mlflow.download_artifacts(run.info.run_id, "output.txt")
        assert "warning 50\n" in Path(output).read_text()
    assert f"task {task.id}, trial 2: " in yard.log
    assert worker.exit_code() is None


@pytest.mark.parametrize("is_doomed", [False, True])
def test_a_step_whose_process_dies_is_done_once_more(yard: Yard, is_doomed: bool) -> None:
    """Somebody else may have taken its memory; if it dies again the task is an error."""
    if is_doomed:
        (yard.settings.data_folder / "doomed").touch()
    yard.bench.post_sessions()
    task = yard.bench.post_task("Struck", trials=1)
    yard.start_worker(executor="process:1", lease_seconds=10.0)
    yard.wait_for(task)
    done = yard.now(task)
    assert done.status is (TaskStatus.ERROR if is_doomed else TaskStatus.DONE), done.error
    assert not is_doomed or (done.error and "SIGKILL" in done.error)
    yard.drain()
    check_invariants(yard)


@pytest.mark.parametrize("executor", ["inline", "process:1"])
def test_a_task_that_kills_its_workers_is_given_up(yard: Yard, executor: str) -> None:
    """After so many dead workers as ES_MAX_EXPIRED_LEASES allows the task is an error that says
    so, and the next worker lives."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Murderous", trials=1)
    for _ in range(2):
        victim = yard.start_worker(executor=executor, max_expired_leases=1)
        assert victim.wait() == -signal.SIGKILL
    survivor = yard.start_worker(executor=executor, max_expired_leases=1)
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.error) == (TaskStatus.ERROR, "its worker died 2 times")
    yard.wait_until_ready(survivor)
    assert survivor.exit_code() is None


@pytest.mark.faults
def test_a_fork_server_that_dies_costs_no_trial(yard: Yard) -> None:
    """Trials need it to start: those at work go on, and another is started for the next."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=3)
    worker = yard.start_worker(executor="process:1", lease_seconds=10.0)
    wait_until(worker.trials)
    (trial,) = worker.trials()
    os.kill(ancestors(trial)[0], signal.SIGKILL)
    yard.wait_for(task, seconds=120)
    done = yard.now(task)
    assert done.status is TaskStatus.DONE, yard.log
    assert [run.info.status for run in yard.bench.runs(done)] == ["FINISHED"] * 3
    yard.drain()
