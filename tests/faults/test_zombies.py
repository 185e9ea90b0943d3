"""A worker that sleeps past its lease and wakes up when another has finished: it writes nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType

from embedding_studio.clock import utc_now
from embedding_studio.store.codec import to_json
from embedding_studio.tasks import FineTuningTask, TaskEventKind, TaskStatus
from tests.faults.harness import (
    WorkerProcess,
    Yard,
    check_champions,
    check_invariants,
    in_every_run,
)
from tests.faults.points import Fault
from tests.faults.test_crashes import (
    ATTEMPT,
    CHAMPIONS,
    FEEDBACK,
    ITERATIONS,
    MODELS,
    REGISTRY,
    RUNS,
    TASKS,
)
from tests.iterations import TOY
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

ALONE: Any = {"sweep_minutes": 0}
"""No other thread is in MLflow's SQLite file when the worker freezes: it would hold its lock."""
NAPS = [
    Fault(f"{MODELS}.upload", "before", action="stop"),  # the initial model's
    Fault(f"{FEEDBACK}.release", "before", action="stop"),
    Fault(f"{RUNS}.start_trial", "after", action="stop"),
    Fault(f"{RUNS}.log_reports", "before", 2, action="stop"),
    Fault(f"{RUNS}.log_reports", "after", 3, action="stop"),
    Fault(f"{MODELS}._upload", "after", 3, action="stop"),  # the model's data, not its card
    Fault("embedding_studio.tracking.models:link_tree", "before", 5, action="stop"),
    Fault(f"{MODELS}.confirm", "before", 2, action="stop"),
    Fault(f"{RUNS}._finish", "before", 2, action="stop"),
    Fault(f"{RUNS}.keep_best", "before", action="stop"),
    Fault(f"{ATTEMPT}.judge", "before", action="stop"),
    Fault(f"{CHAMPIONS}.promote", "before", action="stop"),
    Fault(f"{REGISTRY}.set_champion", "before", action="stop"),
    Fault(f"{ITERATIONS}.remove_older", "before", action="stop"),
    Fault(f"{ITERATIONS}.set_state", "before", action="stop"),
]


def everything(yard: Yard) -> dict[str, str]:
    """All that MLflow, the store and the disk hold, as text."""
    client = yard.bench.mlflow
    experiments = client.search_experiments(view_type=ViewType.ALL)
    ids = [experiment.experiment_id for experiment in experiments]
    runs = client.search_runs(ids, run_view_type=ViewType.ALL, max_results=5000)
    held: dict[str, Any] = {f"experiment {e.experiment_id}": dict(e) for e in experiments}
    for run in runs:
        held[f"run {run.info.run_id}"] = run.to_dictionary()
        for metric in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, metric)
            held[f"{run.info.run_id} {metric}"] = [dict(point) for point in history]
    for model in client.search_registered_models():
        held[f"registered {model.name}"] = dict(model)
    for version in client.search_model_versions():
        held[f"version {version.name} {version.version}"] = dict(version)
    for task in yard.bench.house.store.tasks.page():
        held[f"task {task.id}"] = [to_json(task), to_json(yard.events(task))]
    for file in sorted(yard.settings.artifacts_folder.rglob("*")):
        held[str(file)] = file.read_bytes().hex() if file.is_file() else "folder"
    return {name: json.dumps(value, default=str, sort_keys=True) for name, value in held.items()}


def wake_up(yard: Yard, zombie: WorkerProcess, task: FineTuningTask) -> None:
    """Let a frozen worker go on until it has noticed that the task is no longer its."""
    written = len(yard.log)
    zombie.send(signal.SIGCONT)
    wait_until(lambda: f" task {task.id}: " in yard.log[written:])


IN_EVERY_RUN = {
    "stop before Runs.log_reports #2",
    "stop after Models._upload #3",
    "stop before Registry.set_champion #1",
    "stop before Iterations.remove_older #1",
}


@pytest.mark.parametrize("nap", in_every_run(NAPS, IN_EVERY_RUN))
def test_a_zombie_writes_nothing(shared_yard: Yard, nap: Fault) -> None:
    """Frozen at any step until another worker has finished, nothing changes when it wakes up."""
    yard = shared_yard
    yard.bench.run_task()
    yard.bench.post_sessions(start=1000)
    task = yard.bench.post_task(trials=3)
    zombie = yard.start_worker(nap, **ALONE)
    zombie.wait_for_fault()
    wait_until(zombie.is_frozen)
    other = yard.start_worker()
    yard.wait_for(task)
    assert yard.now(task).status is TaskStatus.DONE, (yard.now(task).error, yard.log)
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    check_invariants(yard, may_hold_work_folder=True)
    before = everything(yard)
    wake_up(yard, zombie, task)
    yard.wait_until_ready(zombie)
    zombie.send(signal.SIGTERM)
    assert zombie.wait() == 0
    after = everything(yard)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    check_invariants(yard)


def test_a_zombie_does_not_take_the_championship_back(shared_yard: Yard) -> None:
    """Frozen right before it moves the alias, and woken when a later task has promoted another
    model: the later champion stays."""
    yard = shared_yard
    yard.bench.post_sessions()
    first = yard.bench.post_task(trials=1)
    frozen = Fault(
        f"{REGISTRY}.set_champion", "before", 2, action="stop"
    )  # the initial model's first
    zombie = yard.start_worker(frozen, **ALONE)
    zombie.wait_for_fault()
    wait_until(zombie.is_frozen)
    other = yard.start_worker()
    yard.wait_for(first)
    yard.bench.post_sessions(start=1000)
    second = yard.bench.post_task(trials=5)
    yard.wait_for(second)
    champion = yard.bench.house.tracking.registry.champion(TOY)
    assert champion == yard.now(second).best_model
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    wake_up(yard, zombie, first)
    yard.drain()
    assert yard.bench.house.tracking.registry.champion(TOY) == champion
    check_invariants(yard)


@pytest.mark.faults
@pytest.mark.parametrize("worker", ["killed", "frozen"])
def test_a_frozen_trial_that_outlives_its_lease_writes_nothing(
    shared_yard: Yard, worker: str
) -> None:
    """Its worker dies, or freezes with it; another takes the task over, removes what they wrote and
    finishes. Awake again, the trial's process ends, and nothing changes."""
    yard = shared_yard
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=2)
    frozen = Fault(f"{RUNS}.log_reports", "after", 2, action="stop_all")
    first = yard.start_worker(frozen, executor="process:1", **ALONE)
    first.wait_for_fault()
    wait_until(first.is_frozen)
    (trial,) = first.trials()
    if worker == "killed":
        first.send(signal.SIGKILL)
    other = yard.start_worker(executor="process:1")
    yard.wait_for(task)
    assert yard.now(task).status is TaskStatus.DONE, (yard.now(task).error, yard.log)
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    assert Path(f"/proc/{trial}").exists()
    before = everything(yard)
    os.kill(trial, signal.SIGCONT)
    if worker == "frozen":
        wake_up(yard, first, task)
        first.send(signal.SIGTERM)
        assert first.wait() == 0
    wait_until(lambda: not Path(f"/proc/{trial}").exists())
    assert everything(yard) == before
    check_invariants(yard)


def test_a_zombie_leaves_the_next_attempts_files_alone(shared_yard: Yard) -> None:
    """Frozen right after its claim, and woken while another worker is at the task: that one goes on
    with what it has on the disk that they share."""
    yard = shared_yard
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=4)
    zombie = yard.start_worker(Fault(f"{TASKS}.claim", "after", action="stop"), **ALONE)
    zombie.wait_for_fault()
    wait_until(zombie.is_frozen)
    yard.start_worker()
    wait_until(lambda: TaskEventKind.TRIAL_FINISHED in {one.kind for one in yard.events(task)})
    wake_up(yard, zombie, task)
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt) == (TaskStatus.DONE, 2), (done.error, yard.log)
    assert [run.info.status for run in yard.bench.runs(done)] == ["FINISHED"] * 4
    yard.drain()
    check_invariants(yard)


@pytest.mark.faults
def test_a_zombie_that_cleans_up_leaves_a_restarted_task_alone(shared_yard: Yard) -> None:
    """Frozen when it was about to remove what a canceled task had written, and woken when another
    worker has finished the restarted task: its model stays, and so does its champion."""
    yard = shared_yard
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=2)
    frozen = Fault(f"{ITERATIONS}.discard_task", "before", action="stop")
    zombie = yard.start_worker(frozen, **ALONE)
    wait_until(lambda: TaskEventKind.TRIAL_FINISHED in {one.kind for one in yard.events(task)})
    store = yard.bench.house.store
    store.tasks.cancel(task.id, utc_now())
    zombie.wait_for_fault()
    wait_until(zombie.is_frozen)
    let_go_at = yard.now(task).lease_expires_at
    wait_until(lambda: let_go_at is None or utc_now() > let_go_at)
    store.tasks.restart(task.id, utc_now())
    other = yard.start_worker(**ALONE)
    yard.wait_for(task)
    done = yard.now(task)
    assert done.status is TaskStatus.DONE, (done.error, yard.log)
    before = everything(yard)
    wake_up(yard, zombie, task)
    yard.wait_until_ready(other)
    yard.drain()
    assert everything(yard) == before
    check_champions(yard.bench, {"Paced"}, yard.settings.keep_champions)
