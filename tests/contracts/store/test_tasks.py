"""The contract of every store: tasks, as clients and workers see them."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any, TypeVar

import pytest

from embedding_studio.clickstream import TimeRange, Usage
from embedding_studio.clock import MAX_LEASE_SECONDS
from embedding_studio.errors import (
    Conflict,
    InvalidInput,
    LeaseLost,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
)
from embedding_studio.store import Store
from embedding_studio.store.usage import size_of_request
from embedding_studio.tasks import (
    Budget,
    Claim,
    FineTuningTask,
    ModelFile,
    Promotion,
    Pruner,
    Sampler,
    SearchOptions,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.workers import WorkerRecord
from tests.contracts import store_processes
from tests.contracts.store_backends import Backend, Moment
from tests.contracts.store_processes import NOW, results_of

Result = TypeVar("Result")
LEASE_SECONDS = 60.0
ODD_JSON = {
    "dotted.key": 1,
    "$dollar": {"$nested.key": [1, 2.5, None, True, {"": "empty key"}]},
    "ключ": "значение ☕ \U0001f600",
    "large": 2**62,
}
NO_IDS = ["", "no id", "0" * 23, "0" * 24, "ж" * 12, "s:1"]
MODEL = StoredModel("run-1", "mlflow-artifacts:/1/model", (ModelFile("a/b.bin", 3, "ab" * 32),))
PROMOTION = Promotion(True, "better", "mrr", 0.5, 0.75, 0.25, (0.125, 0.5), 40)
PROGRESS = TaskProgress(
    "search", "mrr", trial=2, max_trials=5, step=7, main_metric=0.5, trained_tokens=2**40
)

OWNER_WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "renew_lease": lambda store, claim: store.tasks.renew(claim, later(2), 60, PROGRESS),
    "record": lambda store, claim: store.tasks.record(claim, later(2), experiment_id="stale"),
    "finish_task": lambda store, claim: store.tasks.finish(claim, later(2), TaskStatus.DONE),
    "release_task": lambda store, claim: store.tasks.give_back(claim, later(2)),
}


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def add(store: Store, seconds: float = 0, method: str = "m") -> FineTuningTask:
    return store.tasks.add(TaskRequest(method), later(seconds))[0]


def take(store: Store, seconds: float = 0, worker_id: str = "w") -> tuple[FineTuningTask, Claim]:
    task = store.tasks.claim(worker_id, later(seconds), LEASE_SECONDS)
    assert task is not None
    return task, Claim(task.id, task.attempt, worker_id)


def in_threads(count: int, work: Callable[[int], Result]) -> list[Result]:
    """Do the work in so many threads that begin together; return what each returned."""
    barrier = Barrier(count)

    def begin(number: int) -> Result:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.mark.parametrize("is_whole", [False, True])
def test_an_iteration_that_went_is_forgotten_once(store: Store, is_whole: bool) -> None:
    """What is gone is no longer named, and the history says why; a task at work keeps its own, and
    so does one that went on in another experiment."""
    task = add(store)
    _, claim = take(store)
    store.tasks.record(claim, later(1), best_model=MODEL, experiment_id="7")
    store.tasks.forget_iteration(task.id, "7", later(2), "too early", is_whole)
    store.tasks.finish(claim, later(3), TaskStatus.DONE)
    store.tasks.forget_iteration(task.id, "6", later(4), "another", is_whole)
    now = store.tasks.get(task.id)
    assert (now.best_model, now.experiment_id) == (MODEL, "7")
    for _ in range(2):
        store.tasks.forget_iteration(task.id, "7", later(4), "a newer one is there", is_whole)
    now = store.tasks.get(task.id)
    assert (now.best_model, now.experiment_id) == (None, None if is_whole else "7")
    last = [one.event for one in store.tasks.events(task.id, 0, 100)][-2:]
    gone = "iteration_removed" if is_whole else "model_removed"
    assert [event.kind for event in last] == ["done", gone]
    assert last[1].detail == "a newer one is there"
    with pytest.raises(NotFound):
        store.tasks.forget_iteration("0" * 24, "7", later(5), "unknown", is_whole)


def test_the_model_is_forgotten_first_and_the_experiment_later(store: Store) -> None:
    """Where iterations outlive their models, each leaves its event."""
    task = add(store)
    _, claim = take(store)
    store.tasks.record(claim, later(1), best_model=MODEL, experiment_id="7")
    store.tasks.finish(claim, later(2), TaskStatus.DONE)
    for is_whole in (False, False, True, True):
        store.tasks.forget_iteration(task.id, "7", later(3), "why", is_whole)
    last = [one.event.kind for one in store.tasks.events(task.id, 0, 100)][-3:]
    assert last == ["done", "model_removed", "iteration_removed"]


# -- tasks, as their clients see them ----------------------------------------------------------


def test_a_task_comes_back_as_it_was_requested(store: Store) -> None:
    """A new task is pending, carries every field of its request and is read back equal."""
    request = TaskRequest(
        "m", "batch-1", ODD_JSON, "key", Budget(7, 2.5, 10**12, 0.5),
        SearchOptions(Sampler.GP, Pruner.NONE), {"add to cart": 2.5, "a.$b": 0},
    )  # fmt: skip
    task, is_new = store.tasks.add(request, NOW)
    assert is_new
    assert task == FineTuningTask(
        id=task.id,
        fine_tuning_method="m",
        status=TaskStatus.PENDING,
        created_at=NOW,
        updated_at=NOW,
        batch_id="batch-1",
        metadata=ODD_JSON,
        idempotency_key="key",
        budget=Budget(7, 2.5, 10**12, 0.5),
        search=SearchOptions(Sampler.GP, Pruner.NONE),
        event_weights={"add to cart": 2.5, "a.$b": 0},
    )
    assert store.tasks.get(task.id) == task
    assert len(task.id) == 16


def test_the_same_key_and_request_give_the_same_task(store: Store) -> None:
    """A repeated request with its key adds nothing, whatever became of the task meanwhile."""
    request = TaskRequest("m", None, {"b": [1], "a": 2}, "key", Budget(max_minutes=5))
    task, _ = store.tasks.add(request, NOW)
    same = TaskRequest("m", None, {"a": 2, "b": [1]}, "key", Budget(max_minutes=5.0))
    assert store.tasks.add(same, later(1)) == (task, False)
    _, claim = take(store)
    store.tasks.record(claim, NOW, batch_id="released-for-it")
    again, is_new = store.tasks.add(request, later(2))
    assert (again.id, is_new) == (task.id, False)
    assert again.batch_id == "released-for-it"
    assert len(store.tasks.page()) == 1


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (TaskRequest("n", "b", {"a": 1}, "key-1"), "fine_tuning_method"),
        (TaskRequest("m", None, {"a": 1}, "key-1"), "batch_id"),
        (TaskRequest("m", "b", {"a": 2}, "key-1"), "metadata"),
        (TaskRequest("m", "b", None, "key-1"), "metadata"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", Budget(3)), "budget"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", search=SearchOptions(Sampler.GP)), "search"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", event_weights={"buy": 2}), "event_weights"),
    ],
)
def test_the_same_key_with_another_request_is_a_conflict(
    store: Store, other: TaskRequest, difference: str
) -> None:
    """The conflict names the key, the task that has it and what differs, and adds nothing."""
    task, _ = store.tasks.add(TaskRequest("m", "b", {"a": 1}, "key-1"), NOW)
    with pytest.raises(Conflict, match=rf"'key-1'.*{task.id}.*differs in {difference}:"):
        store.tasks.add(other, NOW)
    assert store.tasks.page() == [task]


def test_requests_without_a_key_are_tasks_of_their_own(store: Store) -> None:
    """The same request twice without an idempotency_key makes two tasks."""
    assert add(store).id != add(store).id
    assert len(store.tasks.page()) == 2


def test_a_task_is_found_by_its_key(store: Store) -> None:
    """find_task gives the task added with the key, None for another key."""
    add(store)
    task, _ = store.tasks.add(TaskRequest("m", idempotency_key="key"), NOW)
    assert store.tasks.find("key") == task
    assert store.tasks.find("other") is None


@pytest.mark.parametrize("no_id", NO_IDS)
@pytest.mark.parametrize("method", ["get", "cancel", "restart"])
def test_an_unknown_task_is_not_found(store: Store, method: str, no_id: str) -> None:
    """Asking for a task that does not exist raises NotFound, also for an id that is no id."""
    times = [] if method == "get" else [NOW]
    with pytest.raises(NotFound):
        getattr(store.tasks, method)(no_id, *times)


def test_tasks_are_listed_newest_first(store: Store) -> None:
    """The order is by creation, the same at every call and across pages also among equals."""
    tasks = [add(store, seconds) for seconds in (5, 1, 9)] + [add(store, 7) for _ in range(6)]
    listed = store.tasks.page()
    assert listed == store.tasks.page()
    assert sorted(listed, key=lambda task: task.created_at, reverse=True) == listed
    assert {task.id for task in listed} == {task.id for task in tasks}
    pages = [store.tasks.page(skip=skip, limit=2) for skip in range(0, 10, 2)]
    assert [task for page in pages for task in page] == listed
    assert store.tasks.page(limit=0) == []


def test_tasks_are_listed_by_status(store: Store) -> None:
    """A status given leaves only the tasks that have it."""
    first, second = add(store, 0), add(store, 1)
    store.tasks.cancel(first.id, NOW)
    assert [task.id for task in store.tasks.page(TaskStatus.CANCELED)] == [first.id]
    assert store.tasks.page(TaskStatus.PENDING) == [second]
    assert store.tasks.page(TaskStatus.DONE) == []


def test_a_pending_task_is_canceled_at_once(store: Store) -> None:
    """A canceled pending task is never claimed; canceling it again changes nothing."""
    task = add(store)
    canceled = store.tasks.cancel(task.id, later(1))
    assert canceled == replace(task, status=TaskStatus.CANCELED, updated_at=later(1))
    assert store.tasks.cancel(task.id, later(2)) == canceled
    assert store.tasks.get(task.id) == canceled
    assert store.tasks.claim("w", later(3), LEASE_SECONDS) is None


@pytest.mark.parametrize("write", OWNER_WRITES)
def test_a_cancellation_sticks(store: Store, write: str) -> None:
    """After a cancel the owner's next write raises LeaseLost; worker and lease stay meanwhile."""
    add(store)
    task, claim = take(store)
    canceled = store.tasks.cancel(task.id, later(1))
    assert canceled == replace(task, status=TaskStatus.CANCELED, updated_at=later(1))
    with pytest.raises(LeaseLost, match=task.id):
        OWNER_WRITES[write](store, claim)
    assert store.tasks.get(task.id) == canceled
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None


@pytest.mark.parametrize("end", [TaskStatus.DONE, TaskStatus.ERROR])
def test_an_ended_task_cannot_be_canceled(store: Store, end: TaskStatus) -> None:
    """Canceling a done or failed task raises Conflict and changes nothing."""
    add(store)
    task, claim = take(store)
    store.tasks.finish(claim, NOW, end)
    before = store.tasks.get(task.id)
    with pytest.raises(Conflict, match=f"{task.id}.*{end}"):
        store.tasks.cancel(task.id, later(1))
    assert store.tasks.get(task.id) == before


def test_a_task_whose_verdict_is_in_cannot_be_canceled(store: Store) -> None:
    """Once a promotion is recorded, a cancel raises Conflict: the owner is carrying it out."""
    add(store)
    task, claim = take(store)
    store.tasks.record(claim, NOW, promotion=PROMOTION)
    with pytest.raises(Conflict, match=f"{task.id}.*verdict"):
        store.tasks.cancel(task.id, later(1))
    store.tasks.finish(claim, later(2), TaskStatus.DONE)


@pytest.mark.parametrize("end", [TaskStatus.CANCELED, TaskStatus.ERROR])
def test_a_restart_clears_what_happened_and_keeps_the_batch(store: Store, end: TaskStatus) -> None:
    """A canceled or failed task is pending again as if new, but for its batch and its attempts."""
    add(store)
    take(store)
    task, claim = take(store, LEASE_SECONDS)
    assert task.expired_leases == 1
    store.tasks.renew(claim, NOW, LEASE_SECONDS, PROGRESS)
    store.tasks.record(claim, NOW, batch_id="b", best_model=MODEL)
    if end == TaskStatus.ERROR:
        store.tasks.record(claim, NOW, promotion=PROMOTION)
        store.tasks.finish(claim, NOW, end, "it failed")
    else:
        store.tasks.cancel(task.id, NOW)
        store.tasks.release_canceled(claim)
    restarted = store.tasks.restart(task.id, later(9))
    assert restarted == FineTuningTask(
        id=task.id,
        fine_tuning_method="m",
        status=TaskStatus.PENDING,
        created_at=NOW,
        updated_at=later(9),
        batch_id="b",
        attempt=2,
    )
    assert store.tasks.get(task.id) == restarted
    assert take(store, 10)[0].attempt == 3


def test_a_fresh_restart_is_counted(store: Store) -> None:
    """Each restart that asks to forget earlier trials counts one more fresh start."""
    task = add(store)
    for fresh, expected in ((True, 1), (False, 1), (True, 2)):
        store.tasks.cancel(task.id, NOW)
        assert store.tasks.restart(task.id, NOW, fresh).fresh_starts == expected
    assert store.tasks.get(task.id).fresh_starts == 2


def test_restarting_a_pending_task_changes_nothing(store: Store) -> None:
    """A pending task stays as it is."""
    task = add(store)
    assert store.tasks.restart(task.id, later(1)) == task
    assert store.tasks.get(task.id) == task


def test_a_task_at_work_or_done_cannot_be_restarted(store: Store) -> None:
    """Restarting a processing or done task raises Conflict and changes nothing."""
    add(store)
    task, claim = take(store)
    with pytest.raises(Conflict, match=f"{task.id}.*processing"):
        store.tasks.restart(task.id, later(1000))
    assert store.tasks.get(task.id) == task
    store.tasks.finish(claim, NOW, TaskStatus.DONE)
    with pytest.raises(Conflict, match=f"{task.id}.*done"):
        store.tasks.restart(task.id, NOW)


def test_a_done_task_goes_on_with_more_trials(store: Store) -> None:
    """Unless its model was promoted, or its trials are gone; other limits stay as they were."""
    verdict = Promotion(False, "chance", "mrr", 0.5, 0.5, 0.0)
    for number, (promoted, experiment_id, told) in enumerate(
        [(False, "7", None), (True, "7", "was promoted"), (False, None, "trials were removed")]
    ):
        request = TaskRequest("m", budget=Budget(4, 30.0), idempotency_key=str(number))
        task, _ = store.tasks.add(request, NOW)
        _, claim = take(store)
        record = store.tasks.record
        judged = replace(verdict, promoted=promoted)
        record(claim, NOW, promotion=judged, experiment_id=experiment_id)
        store.tasks.finish(claim, NOW, TaskStatus.DONE)
        for few in (Budget(), Budget(4), Budget(None, 60.0)):
            with pytest.raises(Conflict, match=told or "it had 4 trials: name more"):
                store.tasks.restart(task.id, NOW, more=few)
        if told is not None:
            with pytest.raises(Conflict, match=told):
                store.tasks.restart(task.id, NOW, more=Budget(9))
            continue
        restarted = store.tasks.restart(task.id, NOW, more=Budget(9))
        assert (restarted.status, restarted.budget) == (TaskStatus.PENDING, Budget(9, 30.0))
        assert restarted.promotion is None
        assert store.tasks.events(task.id)[-1].event.detail.endswith("with max_trials 9")
        assert store.tasks.add(request, NOW) == (restarted, False)
        store.tasks.cancel(task.id, NOW)


def test_a_restart_waits_for_the_canceled_owner(store: Store) -> None:
    """A canceled task restarts once its owner lets go or its lease expires, not before."""
    add(store)
    task, claim = take(store)
    store.tasks.cancel(task.id, NOW)
    with pytest.raises(Conflict, match=f"{task.id}.*worker w "):
        store.tasks.restart(task.id, later(LEASE_SECONDS - 1))
    assert store.tasks.get(task.id).status == TaskStatus.CANCELED
    assert store.tasks.restart(task.id, later(LEASE_SECONDS)).worker_id is None
    take(store, 100)
    store.tasks.cancel(task.id, later(100))
    store.tasks.release_canceled(replace(claim, attempt=2))
    assert store.tasks.restart(task.id, later(101)).status == TaskStatus.PENDING


def test_a_stopping_task_ends_as_stopped(store: Store) -> None:
    """The owner hears of the stop when it renews, may still write, and what would be done is
    stopped; stopping again changes nothing, and a stopped task can be restarted."""
    add(store)
    task, claim = take(store)
    assert store.tasks.renew(claim, NOW, LEASE_SECONDS) is TaskStatus.PROCESSING
    stopping = store.tasks.stop(task.id, later(1))
    assert stopping == replace(task, status=TaskStatus.STOPPING, updated_at=later(1))
    assert store.tasks.stop(task.id, later(2)) == stopping
    assert store.tasks.renew(claim, NOW, LEASE_SECONDS) is TaskStatus.STOPPING
    store.tasks.record(claim, NOW, best_model=MODEL, promotion=PROMOTION)
    assert store.tasks.finish(claim, later(3), TaskStatus.DONE) is TaskStatus.STOPPED
    stopped = store.tasks.get(task.id)
    assert (stopped.status, stopped.worker_id) == (TaskStatus.STOPPED, None)
    assert stopped.best_model == MODEL
    assert store.tasks.stop(task.id, later(4)) == stopped
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None
    assert store.tasks.restart(task.id, later(5)).status is TaskStatus.PENDING


def test_a_stopping_task_may_fail_or_be_canceled(store: Store) -> None:
    """A stop is overtaken by an error, and by a cancel, which the owner notices."""
    add(store)
    task, claim = take(store)
    store.tasks.stop(task.id, NOW)
    assert store.tasks.finish(claim, NOW, TaskStatus.ERROR, "no data") is TaskStatus.ERROR
    store.tasks.restart(task.id, NOW)
    task, claim = take(store)
    store.tasks.stop(task.id, NOW)
    assert store.tasks.cancel(task.id, NOW).status is TaskStatus.CANCELED
    with pytest.raises(LeaseLost):
        store.tasks.renew(claim, NOW, LEASE_SECONDS)


@pytest.mark.parametrize("how", ["given back", "its worker died", "stopped while given back"])
def test_a_stopping_task_without_an_owner_is_claimed_to_be_ended(store: Store, how: str) -> None:
    """Whoever claims it finds it stopping still, and ends it as stopped."""
    add(store)
    task, claim = take(store)
    if how == "stopped while given back":
        store.tasks.give_back(claim, NOW)
    store.tasks.stop(task.id, NOW)
    if how == "given back":
        store.tasks.give_back(claim, NOW)
        assert store.tasks.get(task.id).status is TaskStatus.STOPPING
    seconds = LEASE_SECONDS if how == "its worker died" else 1
    again, claim = take(store, seconds, "w-2")
    assert (again.status, again.attempt) == (TaskStatus.STOPPING, 2)
    assert again.expired_leases == (how == "its worker died")
    assert store.tasks.finish(claim, later(99), TaskStatus.STOPPED) is TaskStatus.STOPPED


@pytest.mark.parametrize("state", ["new", "done", "error", "canceled", "verdict"])
def test_a_stop_that_makes_no_sense_is_refused(store: Store, state: str) -> None:
    """A task that never began, has ended or is being ended raises Conflict and stays as it is."""
    task = add(store)
    if state != "new":
        task, claim = take(store)
        if state == "canceled":
            store.tasks.cancel(task.id, NOW)
        elif state == "verdict":
            store.tasks.record(claim, NOW, promotion=PROMOTION)
        else:
            store.tasks.finish(claim, NOW, TaskStatus(state))
    before = store.tasks.get(task.id)
    with pytest.raises(Conflict, match=f"{task.id} cannot be stopped"):
        store.tasks.stop(task.id, later(1))
    assert store.tasks.get(task.id) == before


def test_every_move_leaves_an_event(store: Store) -> None:
    """A task's history tells who did what, numbered from 1 without gaps; a refused move tells
    nothing, and neither does a write that lost its lease."""
    task = add(store)
    _, dead = take(store, 1, "w-1")
    _, claim = take(store, 100, "w-2")
    note = TaskEvent(TaskEventKind.TRIAL_FINISHED, later(101), "trial 1", {"value": 0.5})
    store.tasks.record(claim, later(101), experiment_id="7", event=note)
    with pytest.raises(LeaseLost):
        store.tasks.record(dead, later(102), event=note)
    store.tasks.give_back(claim, later(103))
    _, claim = take(store, 104, "w-3")
    store.tasks.stop(task.id, later(105))
    store.tasks.stop(task.id, later(106))
    store.tasks.finish(claim, later(107), TaskStatus.DONE)
    with pytest.raises(Conflict):
        store.tasks.cancel(task.id, later(108))
    store.tasks.restart(task.id, later(109), fresh=True)
    store.tasks.cancel(task.id, later(110))
    history = store.tasks.events(task.id)
    assert [numbered.event.kind for numbered in history] == [
        "created", "claimed", "lease_expired", "claimed", "trial_finished", "given_back",
        "claimed", "stop_requested", "stopped", "restarted", "canceled",
    ]  # fmt: skip
    assert [numbered.number for numbered in history] == list(range(1, 12))
    assert history[0].event.at == NOW
    assert history[2].event.data == {"attempt": 1, "worker_id": "w-1"}
    assert history[4].event == note


def test_an_event_that_is_recorded_again_is_there_once(store: Store) -> None:
    """A call that is repeated because its answer was lost adds nothing; a later event does."""
    add(store)
    task, claim = take(store)
    note = TaskEvent(TaskEventKind.TRIAL_FINISHED, later(1), "trial 1", {"value": 0.5, "a": [1]})
    for _ in range(2):
        store.tasks.record(claim, later(1), event=note)
    store.tasks.record(claim, later(2), event=replace(note, at=later(2)))
    noted = [numbered.event for numbered in store.tasks.events(task.id)[2:]]
    assert noted == [note, replace(note, at=later(2))]


def test_a_history_is_read_by_pages(store: Store) -> None:
    """Pages follow each other by number; behind the last there is nothing; an unknown task is not
    found."""
    task = add(store)
    for _ in range(3):
        store.tasks.cancel(task.id, NOW)
        store.tasks.restart(task.id, NOW)
    everything = store.tasks.events(task.id)
    assert len(everything) == 7
    assert store.tasks.events(task.id, 0, 3) == everything[:3]
    assert store.tasks.events(task.id, 3, 3) == everything[3:6]
    assert store.tasks.events(task.id, 6, 3) == everything[6:]
    assert store.tasks.events(task.id, 7, 3) == []
    with pytest.raises(NotFound):
        store.tasks.events("0" * 24)


# -- tasks, as their owner sees them -----------------------------------------------------------


def test_the_oldest_pending_task_is_claimed(store: Store) -> None:
    """Claims follow creation; a claim sets status, attempt, worker and lease."""
    tasks = {seconds: add(store, seconds) for seconds in (5, 1, 9)}
    for seconds in (1, 5, 9):
        claimed = store.tasks.claim("w", later(20), 30)
        assert claimed == replace(
            tasks[seconds],
            status=TaskStatus.PROCESSING,
            updated_at=later(20),
            attempt=1,
            worker_id="w",
            lease_expires_at=later(50),
        )
        assert store.tasks.get(claimed.id) == claimed
    assert store.tasks.claim("w", later(20), 30) is None


def test_tasks_of_skipped_methods_are_left_alone(store: Store) -> None:
    """A claim passes over every task of skip_methods, pending or expired."""
    expired = add(store, 0, "skipped")
    assert take(store)[0].id == expired.id
    pending, other = add(store, 1, "skipped too"), add(store, 2, "m")
    skip = frozenset({"skipped", "skipped too"})
    claimed = store.tasks.claim("v", later(1000), LEASE_SECONDS, skip)
    assert claimed is not None
    assert claimed.id == other.id
    assert store.tasks.claim("v", later(1000), LEASE_SECONDS, skip) is None
    assert store.tasks.claim("v", later(1000), LEASE_SECONDS, skip, 0) is None
    assert store.tasks.get(pending.id) == pending
    assert store.tasks.get(expired.id).status == TaskStatus.PROCESSING


def test_an_expired_lease_is_claimed_again(store: Store) -> None:
    """Once the lease is over, not before, the task is anyone's, one attempt and one death on."""
    add(store)
    first, _ = take(store, 0, "w-1")
    assert store.tasks.claim("w-2", later(LEASE_SECONDS - 0.001), LEASE_SECONDS) is None
    second, _ = take(store, LEASE_SECONDS, "w-2")
    assert (second.id, second.attempt, second.expired_leases) == (first.id, 2, 1)
    assert second.worker_id == "w-2"
    assert second.lease_expires_at == later(2 * LEASE_SECONDS)


def test_a_lease_that_ends_too_late_holds_nothing(store: Store) -> None:
    """One that a clock a day ahead wrote blocks neither the next claim nor a restart; the longest
    that is allowed does."""
    add(store)
    ahead = store.tasks.claim("w-1", later(24 * 3600), LEASE_SECONDS)
    assert ahead is not None
    task = store.tasks.claim("w-2", NOW, MAX_LEASE_SECONDS)
    assert task is not None
    assert (task.attempt, task.worker_id) == (2, "w-2")
    assert store.tasks.claim("w-3", NOW, LEASE_SECONDS) is None
    store.tasks.cancel(task.id, NOW)
    with pytest.raises(Conflict, match="w-2"):
        store.tasks.restart(task.id, NOW)
    assert store.tasks.restart(task.id, later(-61)).status is TaskStatus.PENDING


def test_an_expired_task_is_older_than_a_newer_pending_one(store: Store) -> None:
    """Pending and expired tasks stand in one queue, by creation."""
    old = add(store, 0)
    take(store)
    new = add(store, 1)
    assert take(store, LEASE_SECONDS)[0].id == old.id
    assert take(store, LEASE_SECONDS)[0].id == new.id


def test_a_task_whose_workers_keep_dying_becomes_an_error(store: Store) -> None:
    """After max_expired_leases deaths the next one ends the task, and the next is looked at."""
    deadly, other = add(store, 0), add(store, 1)
    for attempt in range(3):
        seconds = attempt * LEASE_SECONDS
        task = store.tasks.claim("w", later(seconds), LEASE_SECONDS, max_expired_leases=2)
        assert task is not None
        assert (task.id, task.attempt, task.expired_leases) == (deadly.id, attempt + 1, attempt)
    now = later(3 * LEASE_SECONDS)
    task = store.tasks.claim("w", now, LEASE_SECONDS, max_expired_leases=2)
    assert task is not None
    assert task.id == other.id
    failed = store.tasks.get(deadly.id)
    assert failed.status == TaskStatus.ERROR
    assert failed.error == "its worker died 3 times"
    assert (failed.expired_leases, failed.attempt, failed.updated_at) == (3, 3, now)
    assert (failed.worker_id, failed.lease_expires_at) == (None, None)


def test_a_released_task_counts_no_death(store: Store) -> None:
    """A task given back is pending without worker and lease, however often that happens."""
    task = add(store)
    for attempt in range(1, 6):
        _, claim = take(store)
        store.tasks.give_back(claim, later(1))
        assert store.tasks.get(task.id) == replace(task, attempt=attempt, updated_at=later(1))


def test_a_renewed_lease_lasts_longer(store: Store) -> None:
    """A renewal counts from now and replaces the progress if one is given, else keeps it."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, later(30), LEASE_SECONDS, PROGRESS)
    assert store.tasks.claim("w-2", later(80), LEASE_SECONDS) is None
    renewed = store.tasks.get(task.id)
    assert renewed == replace(
        task, updated_at=later(30), lease_expires_at=later(90), progress=PROGRESS
    )
    store.tasks.renew(claim, later(40), LEASE_SECONDS)
    assert store.tasks.get(task.id).progress == PROGRESS
    store.tasks.renew(claim, later(50), LEASE_SECONDS, TaskProgress("verify"))
    assert store.tasks.get(task.id).progress == TaskProgress("verify")


def test_an_expired_lease_nobody_took_is_still_the_owners(store: Store) -> None:
    """Ownership ends with another claim, not with the clock."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, later(1000), LEASE_SECONDS)
    assert store.tasks.get(task.id).attempt == 1
    assert store.tasks.claim("w-2", later(1000), LEASE_SECONDS) is None


def test_record_sets_the_given_fields(store: Store) -> None:
    """Each field given is set; None leaves a field alone."""
    add(store)
    task, claim = take(store)
    store.tasks.record(claim, later(1), batch_id="b", experiment_id="7")
    store.tasks.record(claim, later(2), best_model=MODEL)
    store.tasks.record(claim, later(3), promotion=PROMOTION)
    store.tasks.record(claim, later(4))
    assert store.tasks.get(task.id) == replace(
        task,
        updated_at=later(4),
        batch_id="b",
        experiment_id="7",
        best_model=MODEL,
        promotion=PROMOTION,
    )


@pytest.mark.parametrize(
    ("status", "error"), [(TaskStatus.DONE, None), (TaskStatus.ERROR, "no data")]
)
def test_a_finished_task_has_no_owner(store: Store, status: TaskStatus, error: str | None) -> None:
    """Finishing sets status and error, gives up the lease and ends the claims."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, NOW, LEASE_SECONDS, PROGRESS)
    store.tasks.finish(claim, later(5), status, error)
    finished = store.tasks.get(task.id)
    assert finished == replace(
        task,
        status=status,
        error=error,
        updated_at=later(5),
        worker_id=None,
        lease_expires_at=None,
        progress=PROGRESS,
    )
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None


@pytest.mark.parametrize("status", [TaskStatus.PENDING, TaskStatus.PROCESSING, TaskStatus.CANCELED])
def test_a_task_ends_as_done_or_error_only(store: Store, status: TaskStatus) -> None:
    """Finishing with another status is a programming error and changes nothing."""
    add(store)
    task, claim = take(store)
    with pytest.raises(ValueError, match=status):
        store.tasks.finish(claim, NOW, status)
    assert store.tasks.get(task.id) == task


@pytest.mark.parametrize("write", OWNER_WRITES)
@pytest.mark.parametrize("what", ["claimed again", "given back", "done", "restarted", "unknown"])
def test_a_stale_owner_changes_nothing(store: Store, write: str, what: str) -> None:
    """Whatever took the task from its owner, the owner's every write raises LeaseLost."""
    add(store)
    task, claim = take(store)
    if what == "claimed again":
        take(store, LEASE_SECONDS, "w")
    elif what == "given back":
        store.tasks.give_back(claim, NOW)
    elif what == "done":
        store.tasks.finish(claim, NOW, TaskStatus.DONE)
    elif what == "restarted":
        store.tasks.cancel(task.id, NOW)
        store.tasks.restart(task.id, later(LEASE_SECONDS))
    else:
        claim = replace(claim, task_id="no id")
    before = store.tasks.get(task.id)
    with pytest.raises(LeaseLost, match=claim.task_id):
        OWNER_WRITES[write](store, claim)
    assert store.tasks.get(task.id) == before


def test_letting_go_of_a_canceled_task_clears_its_owner(store: Store) -> None:
    """release_canceled clears worker, lease and model for a canceled task's last owner only."""
    add(store)
    _, stale = take(store, 0, "w-1")
    task, claim = take(store, LEASE_SECONDS, "w-2")
    store.tasks.record(claim, later(LEASE_SECONDS), best_model=MODEL)
    canceled = store.tasks.cancel(task.id, NOW)
    store.tasks.release_canceled(stale)
    store.tasks.release_canceled(replace(claim, task_id="no id"))
    assert store.tasks.get(task.id) == canceled
    store.tasks.release_canceled(claim)
    assert store.tasks.get(task.id) == replace(
        canceled, worker_id=None, lease_expires_at=None, best_model=None
    )
    store.tasks.release_canceled(claim)


def test_letting_go_of_a_task_that_is_not_canceled_does_nothing(store: Store) -> None:
    """A claim on a processing task is not given up by release_canceled."""
    add(store)
    task, claim = take(store)
    store.tasks.release_canceled(claim)
    assert store.tasks.get(task.id) == task


# -- calls broken off --------------------------------------------------------------------------


REPEATABLE: dict[str, Callable[[Store], Any]] = {
    "tasks.add": lambda store: store.tasks.add(TaskRequest("m", idempotency_key="key"), NOW),
    "workers.record": lambda store: store.workers.record(WorkerRecord("w", ("m",), NOW)),
}


def snapshot(store: Store) -> list[Any]:
    """Return what the store holds, but for the ids that it chose itself."""
    tasks = [replace(task, id="") for task in store.tasks.page()]
    histories = [store.tasks.events(task.id, 0, 9) for task in store.tasks.page()]
    return [tasks, histories, store.workers.seen(later(-1))]


@pytest.mark.parametrize("operation", REPEATABLE)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_call_that_failed_is_completed_by_repeating_it(
    backend: Backend, operation: str, moment: Moment
) -> None:
    """Whichever write of a call fails, its repetition leaves what one call would have left."""
    call = REPEATABLE[operation]
    with closing(backend.open()) as store:
        call(store)
        expected = snapshot(store)
    has_failed, nth = True, 0
    while has_failed:
        nth += 1
        broken = backend.another()
        with closing(broken.open()) as store:
            with broken.failing(nth, moment) as failure:
                try:
                    call(store)
                except StoreUnavailable:
                    assert failure.happened
            has_failed = failure.happened
            call(store)
            assert snapshot(store) == expected
    assert nth > 1


# -- another writer in between -----------------------------------------------------------------


TAKEN: dict[str, Callable[[Store, Claim], Any]] = {
    "claimed": lambda store, claim: take(store, LEASE_SECONDS, "other"),
    "renewed": lambda store, claim: store.tasks.renew(claim, later(LEASE_SECONDS), LEASE_SECONDS),
    "canceled": lambda store, claim: store.tasks.cancel(claim.task_id, NOW),
    "finished": lambda store, claim: store.tasks.finish(claim, NOW, TaskStatus.DONE),
    "failed": lambda store, claim: store.tasks.finish(claim, NOW, TaskStatus.ERROR),
}


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("taken", TAKEN)
def test_an_expired_lease_goes_to_whoever_writes_first(
    backend: Backend, store: Store, taken: str, nth: int
) -> None:
    """A claimant that saw an expired lease takes nothing that was moved before it could write."""
    add(store)
    task, claim = take(store)
    states: list[FineTuningTask] = []

    def interrupt() -> None:
        TAKEN[taken](store, claim)
        states.append(store.tasks.get(task.id))

    with backend.interrupted(nth, interrupt) as interruption:
        claimed = store.tasks.claim("w", later(LEASE_SECONDS), LEASE_SECONDS)
    assert (claimed is None) == interruption.happened
    assert store.tasks.get(task.id) == (claimed or states[0])


@pytest.mark.parametrize("nth", [1, 2])
def test_a_pending_task_goes_to_whoever_writes_first(
    backend: Backend, store: Store, nth: int
) -> None:
    """A claimant that saw a pending task takes the next one when another was quicker."""
    first, second = add(store, 0), add(store, 1)
    with backend.interrupted(nth, lambda: take(store, 2, "other")) as interruption:
        take(store, 2, "w")
    owners = [store.tasks.get(task.id).worker_id for task in (first, second)]
    assert owners == (["other", "w"] if interruption.happened else ["w", None])


@pytest.mark.parametrize("nth", [1, 2])
def test_a_cancel_meets_a_finish(backend: Backend, store: Store, nth: int) -> None:
    """A task that is finished before the cancel can write stays finished."""
    add(store)
    task, claim = take(store)

    def interrupt() -> None:
        store.tasks.finish(claim, NOW, TaskStatus.DONE)

    with backend.interrupted(nth, interrupt) as interruption, suppress(Conflict):
        store.tasks.cancel(task.id, NOW)
    expected = TaskStatus.DONE if interruption.happened else TaskStatus.CANCELED
    assert store.tasks.get(task.id).status == expected


@pytest.mark.parametrize("nth", [1, 2])
def test_a_restart_meets_another_and_its_claim(backend: Backend, store: Store, nth: int) -> None:
    """A task that is restarted and claimed before a restart can write stays claimed."""
    task = add(store)
    store.tasks.cancel(task.id, NOW)

    def interrupt() -> None:
        store.tasks.restart(task.id, NOW)
        take(store)

    with backend.interrupted(nth, interrupt) as interruption, suppress(Conflict):
        store.tasks.restart(task.id, NOW)
    expected = TaskStatus.PROCESSING if interruption.happened else TaskStatus.PENDING
    assert store.tasks.get(task.id).status == expected


# -- several threads ---------------------------------------------------------------------------


def test_threads_that_post_one_key_get_one_task(shared: Backend) -> None:
    """Of 16 concurrent posts of one idempotency_key one adds the task, all are given it."""
    store = shared.open()
    request = TaskRequest("m", metadata={"a": 1}, idempotency_key="key")
    added = in_threads(16, lambda _: store.tasks.add(request, NOW))
    assert [is_new for _, is_new in added].count(True) == 1
    assert len({task.id for task, _ in added}) == 1
    assert len(store.tasks.page()) == 1
    store.close()


def test_threads_that_cancel_and_finish_agree_on_one_end(shared: Backend) -> None:
    """Of a cancel and a finish at once one succeeds and the other says that it did not."""
    store = shared.open()
    for _ in range(5):
        add(store)
        task, claim = take(store)

        def end(number: int, task: FineTuningTask = task, claim: Claim = claim) -> bool:
            try:
                if number:
                    store.tasks.cancel(task.id, NOW)
                else:
                    store.tasks.finish(claim, NOW, TaskStatus.DONE)
            except (Conflict, LeaseLost):
                return False
            return True

        finished, canceled = in_threads(2, end)
        assert finished != canceled
        ended = TaskStatus.DONE if finished else TaskStatus.CANCELED
        assert store.tasks.get(task.id).status == ended
    store.close()


# -- several processes -------------------------------------------------------------------------


def test_processes_claim_each_task_once(shared: Backend, processes: ProcessPoolExecutor) -> None:
    """Of concurrent claimants exactly one gets each task."""
    store = shared.open()
    added = {add(store, number).id for number in range(40)}
    claimed = results_of(
        [processes.submit(store_processes.claim_all, shared.url, f"w-{n}") for n in range(3)]
    )
    assert sorted(task_id for ids in claimed for task_id in ids) == sorted(added)
    for number, ids in enumerate(claimed):
        for task_id in ids:
            task = store.tasks.get(task_id)
            assert (task.worker_id, task.attempt) == (f"w-{number}", 1)
    store.close()


def test_processes_that_post_the_same_keys_get_the_same_tasks(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Each idempotency_key makes one task, whichever process comes first."""
    keys = [f"key-{number}" for number in range(15)]
    added = results_of(
        [processes.submit(store_processes.add_tasks, shared.url, keys) for _ in range(3)]
    )
    for same in zip(*added, strict=True):
        assert len({task_id for task_id, _ in same}) == 1
        assert [is_new for _, is_new in same].count(True) == 1
    store = shared.open()
    assert len(store.tasks.page()) == len(keys)
    store.close()


def test_tasks_at_work_are_those_of_all_projects(store: Store) -> None:
    """Processing and stopping ones, whoever's."""
    for project in ("default", "acme", "other"):
        store.in_project(project).tasks.add(TaskRequest("m"), NOW)
    first, second = store.tasks.claim("w", NOW, 60), store.tasks.claim("w", NOW, 60)
    assert first is not None
    assert second is not None
    store.in_project(second.project).tasks.stop(second.id, NOW)
    at_work = {(task.id, task.status) for task in store.tasks.at_work()}
    assert at_work == {(first.id, TaskStatus.PROCESSING), (second.id, TaskStatus.STOPPING)}


# -- what is bounded ---------------------------------------------------------------------------


def test_tasks_count_too(store: Store) -> None:
    """So nobody fills a disk with tasks; one that is asked for again is there already."""
    request = TaskRequest("m", metadata={"note": "x" * 1000}, idempotency_key="key")
    most = Usage(10**9, size_of_request(request) + 1000)
    for _ in range(2):
        store.tasks.add(request, NOW, most=most)
    assert store.clickstream.usage() == {"default": Usage(0, size_of_request(request))}
    with pytest.raises(TooManyRequests, match="ES_MAX_PROJECT_MB"):
        store.tasks.add(replace(request, idempotency_key="another"), NOW, most=most)
    assert len(store.tasks.page()) == 1


def test_a_tasks_history_has_an_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes it longer and longer by restarting and canceling."""
    monkeypatch.setattr("embedding_studio.store.tasks.MAX_HISTORY", 5)
    task, _ = store.tasks.add(TaskRequest("m"), NOW)

    def go_round() -> None:
        while True:
            store.tasks.cancel(task.id, NOW)
            store.tasks.restart(task.id, NOW)

    with pytest.raises(Conflict, match=f"{task.id} cannot be restarted any more"):
        go_round()
    assert len(store.tasks.events(task.id)) == 6


def test_a_page_of_tasks_is_no_larger_than_one_of_sessions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger one is refused, for a part of it would look like the last page."""
    monkeypatch.setattr("embedding_studio.store.tasks.PAGE_BYTES", 1000)
    for _ in range(4):
        store.tasks.add(TaskRequest("method", metadata={"x": "y" * 300}), NOW)
    assert len(store.tasks.page(limit=3)) == 3
    with pytest.raises(InvalidInput, match="limit"):
        store.tasks.page(limit=4)


def test_a_time_range_is_counted_back_from_when_the_task_is_added(store: Store) -> None:
    """Once: the same post later is the same task, another range another request."""
    request = TaskRequest("m", idempotency_key="key", last="2w")
    task, _ = store.tasks.add(request, NOW)
    assert (task.last, task.since, task.until) == ("2w", later(-14 * 86400), None)
    assert task.time_range == TimeRange(later(-14 * 86400), None)
    assert store.tasks.add(request, later(99)) == (task, False)
    assert store.tasks.get(task.id) == task
    for other in (replace(request, last="14d"), replace(request, last=None, since=task.since)):
        with pytest.raises(Conflict, match="last"):
            store.tasks.add(other, NOW)
    assert store.tasks.add(TaskRequest("m"), NOW)[0].time_range is None


def test_the_task_that_waits_for_a_batch_is_found_by_its_method(store: Store) -> None:
    """The oldest of the project, or of a method; one that learns from labels alone takes none."""
    store.tasks.add(TaskRequest("m", labels_id="a"), NOW)
    first = store.tasks.add(TaskRequest("m"), NOW)[0]
    second = store.tasks.add(TaskRequest("n"), later(1))[0]
    waiting = store.tasks.waiting_for_batch
    assert [waiting(), waiting("m"), waiting("n"), waiting("o")] == [first, first, second, None]
