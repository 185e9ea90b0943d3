"""A project as it looks after some weeks: tasks in every state, batches, and a model's versions."""

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.models import ChampionMove, ModelVersion, MoveKind
from embedding_studio.store import Store
from embedding_studio.tasks import (
    Budget,
    Claim,
    MetricChange,
    Promotion,
    QueryChange,
    RunningTrial,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from tests.api.samples import METHOD, START, claim, record_worker, write_model

EVIL = "<script>alert(1)</script>"
"""A query as somebody may type it."""
VERDICT = Promotion(
    promoted=True,
    reason="better beyond chance",
    metric_name="ndcg_at_10",
    baseline=0.41,
    best=0.46,
    delta=0.05,
    delta_ci95=(0.03, 0.07),
    test_queries=718,
    metrics=(
        MetricChange("ndcg_at_10", 0.41, 0.46, 0.05, (0.03, 0.07)),
        MetricChange("recall_at_10", 0.62, 0.61, -0.01, (-0.03, 0.01)),
    ),
    gained=(QueryChange("winter jacket", 0.2, 0.9), QueryChange(EVIL, 0.1, 0.5)),
    lost=(QueryChange("hat", 0.8, 0.6),),
    warnings=("recall_at_10 fell within chance",),
)


@dataclass(frozen=True, slots=True)
class Ids:
    """Of what the project has."""

    done: str
    at_work: str
    failed: str
    released: str


def fill(store: Store, folder: Path, project: str = "default") -> Ids:
    """Put into a project: a batch that is released and one collecting, a task that is done with a
    model that is not promoted, one at work and one that failed, and three versions of the model."""
    there = store.in_project(project)
    there.clickstream.register([_session(number) for number in range(40)], START)
    released = there.clickstream.release("first", START).batch_id
    there.clickstream.register([_session(number) for number in range(40, 60)], START)
    _register(there, folder)
    record_worker(store)
    done = _start(there, released)
    _end_trials(store, done)
    refused = replace(VERDICT, promoted=False, reason="the difference may be chance")
    model = StoredModel("run-9", str(folder / "model-1"), write_model(folder / "model-1"))
    told = TaskProgress("clean up", "ndcg_at_10", 3, 3, best_so_far=0.44, baseline=0.40)
    store.tasks.record(
        done,
        START,
        experiment_id="7",
        best_model=model,
        promotion=refused,
    )
    store.tasks.renew(done, START, 60, told)
    store.tasks.finish(done, START, TaskStatus.DONE)
    failed = _start(there, released)
    store.tasks.finish(failed, START, TaskStatus.ERROR, f"no query {EVIL} has clicks")
    at_work = _start(there, released)
    running = RunningTrial(3, START, 2, 0.43, (0.41, 0.43))
    search = TaskProgress(
        phase="search",
        main_metric_name="ndcg_at_10",
        max_trials=8,
        best_so_far=0.44,
        baseline=0.40,
        finished_trials=2,
        pruned_trials=1,
        running_trials=(running,),
        seconds_left=250.0,
    )
    _end_trials(store, at_work, 2)
    store.tasks.renew(at_work, START, 60, search)
    return Ids(done.task_id, at_work.task_id, failed.task_id, released)


def _session(number: int) -> Session:
    results = tuple(
        SearchResult(f"item-{i}", 1.0 - i / 10, {"text": f"item {i}"}) for i in range(5)
    )
    clicks = (SessionEvent(f"event-{number}", f"item-{number % 3}", START),)
    return Session(f"s-{number}", f"query {number}", results, START, events=clicks)


def _start(store: Store, batch_id: str) -> Claim:
    store.tasks.add(TaskRequest(METHOD, batch_id, budget=Budget(max_trials=8)), START)
    return claim(store)


def _end_trials(store: Store, owner: Claim, count: int = 3) -> None:
    ends: list[tuple[TaskEventKind, dict[str, Any]]] = [
        (TaskEventKind.TRIAL_FINISHED, {"value": 0.44, "main_metrics": [0.40, 0.43, 0.44]}),
        (TaskEventKind.TRIAL_PRUNED, {"main_metrics": [0.39, 0.38]}),
        (TaskEventKind.TRIAL_FAILED, {}),
    ]
    for number, (kind, data) in enumerate(ends[:count], start=1):
        tried = {"run_id": f"run-{number}", "parameters": {"rate": 0.00031234, "epochs": number}}
        told = {"trial": number, **tried, **data}
        event = TaskEvent(kind, START, f"trial {number}: {EVIL}", told)
        store.tasks.record(owner, START, event=event)


def _register(store: Store, folder: Path) -> None:
    """Register three versions, each champion after the one before."""
    for number in range(1, 4):
        place = folder / f"model-{number}"
        model = StoredModel(f"run-{number}", str(place), write_model(place))
        verdict = VERDICT if number > 1 else None
        at = START - timedelta(days=20 - 7 * number)
        new = ModelVersion(number, model, at, f"task-{number}" if verdict else None, verdict)
        kind = MoveKind.PROMOTED if verdict else MoveKind.INITIAL
        move = ChampionMove(kind, at, number - 1 or None, number, f"task task-{number}", "")
        store.models.update(METHOD, lambda model, m=move, new=new: model.moved(m, new))  # type: ignore[misc]
